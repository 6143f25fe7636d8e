"""LMDBs of every layout; their pickles run no code."""

import contextlib
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from pictures import COLOURS, colours_of, png

from sit_atconv.data import (
    BrokenImageError,
    LMDBDataset,
    is_image_folder,
    open_dataset,
)
from sit_atconv.data.lmdb_file import check_whole
from sit_atconv.data.lmdb_images import open_transaction

lmdb = pytest.importorskip("lmdb")


def test_lmdb_of_images_by_number(database):
    path = database({str(i).encode(): png(colour) for i, colour in enumerate(COLOURS * 2)} | {b"length": b"12"})
    dataset = open_dataset(path, 4)
    assert isinstance(dataset, LMDBDataset)
    assert (colours_of(dataset), dataset.classes) == (COLOURS * 2, [])  # 10 after 9, not after 1
    assert not is_image_folder(path)


def test_lmdb_of_pickled_pairs(database):
    meta = {b"__len__": pickle.dumps(6), b"__keys__": pickle.dumps([b"%08d" % i for i in range(6)])}
    pairs = {b"%08d" % i: pickle.dumps((png(colour), i % 3)) for i, colour in enumerate(COLOURS)}
    dataset = open_dataset(database(pairs | meta, subdir=False), 4)
    assert (colours_of(dataset), dataset.classes) == (COLOURS, ["0", "1", "2"])
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    records = {key: pickle.dumps({"image": png("red"), "label": "cat"}) for key in pairs}
    assert open_dataset(database(records), 4).classes == ["cat"]
    unlabelled = open_dataset(f"{database(pairs)}?label=none", 4)
    assert (colours_of(unlabelled), unlabelled.classes) == (COLOURS, [])


def test_lmdb_of_several_sizes(database):
    sizes = {4: "red", 8: "lime", 16: "blue"}
    entries = {f"{size}-{i:05d}".encode(): png(c, size) for size, c in sizes.items() for i in range(3)}
    path = database(entries | {b"length": b"3"})
    assert colours_of(open_dataset(path, 8)) == [(0, 255, 0)] * 3
    assert colours_of(open_dataset(path, 5)) == [(0, 255, 0)] * 3
    assert colours_of(open_dataset(path, 64)) == [(0, 0, 255)] * 3
    assert colours_of(open_dataset(f"{path}?size=4", 8)) == [(255, 0, 0)] * 3
    with pytest.raises(ValueError, match=r"size=5 is not stored; there are: \[4, 8, 16\]"):
        open_dataset(f"{path}?size=5", 8)


def test_lmdb_with_label_keys_and_with_paths(database):
    entries = {b"num-samples": b"6"}
    for i, colour in enumerate(COLOURS):
        entries |= {b"image-%09d" % (i + 1): png(colour), b"label-%09d" % (i + 1): str(i % 2).encode()}
    dataset = open_dataset(database(entries), 4)
    assert (colours_of(dataset), dataset.labels.tolist()) == (COLOURS, [0, 1] * 3)
    paths = open_dataset(database({b"n02/b.JPEG": png("red"), b"n01/a.JPEG": png("blue")}), 4)
    assert (colours_of(paths), paths.classes, paths.labels.tolist()) == (
        [(0, 0, 255), (255, 0, 0)],
        ["n01", "n02"],
        [0, 1],
    )


class Payload:
    def __reduce__(self):
        return pytest.fail, ("a pickle ran code",)


def test_lmdb_pickles_run_no_code(database):
    with pytest.raises(ValueError, match="the pickle asks for"):
        open_dataset(database({b"0": pickle.dumps((png("red"), Payload()))}), 4)
    later = database({b"0": pickle.dumps((png("red"), 0)), b"1": pickle.dumps(Payload())})
    dataset = open_dataset(f"{later}?label=none", 4)  # does not look at the second one
    with pytest.raises(BrokenImageError, match="key 1: the pickle asks for"):
        dataset.image(1)


def test_lmdb_pickles_cannot_end_the_process(database):
    """CPython computes the hash of nested tuples recursively, until the stack is at its end."""
    nested = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    with pytest.raises(ValueError, match="damaged or crafted pickle: it nests"):
        open_dataset(database({b"0": nested}), 4)


def test_lmdb_that_cannot_be_used(database, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_dataset(tmp_path / "none.lmdb", 4)
    (tmp_path / "text.lmdb").write_text("no database" * 1000)
    with pytest.raises(ValueError, match="cannot be opened as an LMDB"):
        open_dataset(tmp_path / "text.lmdb", 4)
    with pytest.raises(ValueError, match="holds no images"):
        open_dataset(database({b"length": b"0"}), 4)
    with pytest.raises(ValueError, match="several kinds of names: a-, b-"):
        open_dataset(database({b"a-0": png("red"), b"b-0": png("red")}), 4)
    broken = open_dataset(database({b"0": png("red")[:50]}), 4)
    with pytest.raises(BrokenImageError, match=r"key 0 of .* cannot be read"):
        broken.image(0)


def test_a_forked_process_opens_the_file_anew(database, monkeypatch):
    path = database({b"0": png("red")})
    first = open_transaction(path)
    assert open_transaction(path) is first
    monkeypatch.setattr(os, "getpid", lambda: 0)  # as after a fork
    second = open_transaction(path)
    assert second is not first
    assert bytes(second.get(b"0")) == png("red")


def test_a_truncated_lmdb_is_refused_before_it_is_mapped(database):
    """Reading behind the end of a mapped file would end the process by SIGBUS."""
    path = database({str(i).encode(): bytes(9000) + str(i).encode() for i in range(40)}, subdir=False)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 3 * 4096, 2 * 4096, 4097):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=rf"is truncated: it has {size} bytes, but refers to [0-9]+; copy it again"
        ):
            open_dataset(path, 4)
    for size in (4096, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"is truncated|cannot be opened as an LMDB"):
            open_dataset(path, 4)
    path.write_bytes(whole + bytes(4096))
    assert len(open_dataset(path, 4)) == 40


@pytest.mark.parametrize("byte", [None, 0xFF])
def test_damaged_pages_do_not_end_the_process(byte, database):
    """Bytes in pages of every kind are overwritten, at random places or in headers: refused, or still read."""
    entries = {f"{i:04d}".encode(): bytes([i % 250]) * (9000 if i % 9 == 0 else 60) for i in range(200)}
    whole = database(entries, subdir=False).read_bytes()
    files = [database({b"0": b""}, subdir=False) for _ in range(20)]
    for number, file in enumerate(files):
        rng = np.random.default_rng(number)
        content = bytearray(whole)
        for page in range(2, len(whole) // 4096):
            start = page * 4096 + int(rng.choice([0, 8, 10, 12, 14, 16, 20, int(rng.integers(4096))]))
            length = int(rng.choice([0, 0, 1, 2, 4]))
            content[start : start + length] = rng.bytes(length) if byte is None else bytes([byte]) * length
        file.write_bytes(content)

    def read(files) -> None:
        for file in files:
            with contextlib.suppress(ValueError):
                dataset = open_dataset(file, 4)
                for i in range(len(dataset)):
                    with contextlib.suppress(BrokenImageError):
                        dataset.encoded(i)

    child = multiprocessing.get_context("fork").Process(target=read, args=(files,))
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (16 + 24, 0, "its pages cannot have 0 bytes"),
        (4096 + 16 + 24, 512, "its pages cannot have 512 bytes"),
        (4096 + 16, 7, "its second page does not describe it"),
    ],
)
def test_a_damaged_description_is_named(offset, value, message, database):
    path = database({b"0": png("red")}, subdir=False)
    content = bytearray(path.read_bytes())
    content[offset : offset + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"is damaged: {message}; copy it again"):
        open_dataset(path, 4)


def test_every_part_of_a_page_is_checked(database):
    """A root that is a branch, with one field changed at a time. LMDB asserts, or follows, each of them unchecked."""
    path = database({f"{i:04d}".encode(): bytes(9000 if i == 7 else 40) for i in range(200)}, subdir=False)
    whole = path.read_bytes()
    newer = max((0, 4096), key=lambda start: int.from_bytes(whole[start + 16 + 128 :][:8], "little"))
    root = int.from_bytes(whole[newer + 16 + 112 :][:8], "little") * 4096
    first = root + int.from_bytes(whole[root + 16 :][:2], "little")  # its first node
    changes = {
        newer + 16 + 112: (b"\x01", "page 1 is out of place"),
        newer + 16 + 24 + 48 + 4: (b"\x04", "keys have several values"),
        root: (b"\xff", "damaged header"),
        root + 10: (b"\x02\x00", "damaged key"),  # a leaf
        root + 12: (b"\x12\x00", "too few keys"),
        root + 14: (b"\xff\xff", "damaged header"),
        root + 16: (b"\xfc\xff", "damaged key"),
        first + 6: (b"\xff\xff", "damaged key"),
        first: (bytes([whole[root] & 0xFF]), "out of place"),  # a page that contains itself
    }
    for place, (value, message) in changes.items():
        path.write_bytes(whole[:place] + value + whole[place + len(value) :])
        with pytest.raises(ValueError, match=f"is damaged: .*{message}.*; copy it again"):
            open_dataset(path, 4)
    path.write_bytes(whole)
    assert len(open_dataset(path, 4)) == 200


def test_an_lmdb_that_ends_before_pages_that_are_free_is_whole(tmp_path):
    """Pages that a transaction has freed again may never be written."""
    path = tmp_path / "images.lmdb"
    images = {str(i).encode(): png(COLOURS[i % 6]) * 100 for i in range(60)}
    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in (images | {b"z": bytes(50_000)}).items():
                transaction.put(key, value)
        for _ in range(4):  # later transactions reuse what earlier ones have freed
            with environment.begin(write=True) as transaction:
                transaction.delete(b"z")
                transaction.put(b"0", images[b"0"])
        pages = environment.info()["last_pgno"] + 1
    content = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(content[: (pages - cut) * 4096])
        try:
            check_whole(path, "data")
        except ValueError:
            break
    assert 1 < cut < 40
    path.write_bytes(content[: (pages - cut + 1) * 4096])
    dataset = open_dataset(path, 4)
    assert colours_of(dataset) == [COLOURS[i % 6] for i in range(60)]


@pytest.mark.parametrize(
    "label", [2**63, "9" * 100, 1 << 20_000, (1, 2), {b"a": 1}, float("inf"), None, [b"x"]], ids=range(8)
)
def test_labels_of_pickles_that_are_none(database, label):
    path = database({b"0": pickle.dumps((png("red"), 0)), b"1": pickle.dumps((png("red"), label))})
    with pytest.raises(ValueError, match=r"too large for a class id|all be whole numbers or all be names, but one is"):
        open_dataset(path, 4)


def test_labels_and_keys_that_are_no_text(database):
    entries = {b"image-%d" % i: png(COLOURS[i]) for i in range(2)} | {b"label-0": b"\xff", b"label-1": b"cat"}
    assert open_dataset(database(entries), 4).classes == [r"\xff", "cat"]
    large = {str(10**30 + i).encode(): png(COLOURS[i]) for i in range(3)}  # beyond 64 bits, in order
    assert colours_of(open_dataset(database(large), 4)) == COLOURS[:3]
    large = {b"9" * 200 + b"-" + str(i).encode(): png(COLOURS[i]) for i in range(3)}
    assert colours_of(open_dataset(database(large), 4)) == COLOURS[:3]
    pairs = {str(i).encode(): pickle.dumps((png("red"), [b"cat", b"dog"][i])) for i in range(2)}
    assert open_dataset(database(pairs), 4).classes == ["cat", "dog"]


def test_nested_pickles_are_refused(database):
    nested = b"\x80\x04)" + b"\x85" * 10**5 + b"."
    with pytest.raises(BrokenImageError, match="key 0"):
        open_dataset(database({b"0": nested}), 4)
