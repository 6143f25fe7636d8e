"""WebDataset shards: what is found, how they are mixed, and what is refused."""

import os
import tarfile

import fsspec
import numpy as np
import pytest
from pictures import COLOURS, colours_of, png, write_tar

from sit_atconv.data import (
    BrokenImageError,
    ShardDataset,
    is_image_folder,
    open_dataset,
    sample_generator,
)


def test_shards(shards):
    dataset = open_dataset(shards, 4)
    assert isinstance(dataset, ShardDataset)
    assert (dataset.classes, dataset.labels.tolist()) == (["0", "1", "2"], [0, 0, 1, 1, 2, 2])
    assert colours_of(dataset) == COLOURS
    assert not is_image_folder(shards)
    assert colours_of(open_dataset(f"{shards}/train-{{001..002}}.tar", 4)) == COLOURS[2:]
    assert colours_of(open_dataset(f"{shards}/train-*1.tar", 4)) == COLOURS[2:4]
    assert colours_of(open_dataset(shards / "train-000.tar", 4)) == COLOURS[:2]
    named = open_dataset(f"{shards}?label=json:kind", 4)
    assert (named.classes, named.labels.tolist()) == (["cold", "warm"], [1, 0] * 3)
    assert open_dataset(f"{shards}?label=none", 4).classes == []


def test_an_index_is_kept_until_the_shard_changes(shards, monkeypatch):
    first = open_dataset(shards, 4)
    assert colours_of(first) == COLOURS
    fingerprint = first.fingerprint()
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", lambda *arguments, **options: pytest.fail("read again"))
        again = open_dataset(shards, 4)
        assert (colours_of(again), again.fingerprint()) == (COLOURS, fingerprint)
    write_tar(shards / "train-000.tar", [("x.png", png("blue")), ("x.cls", b"0")] * 1 + [("y.txt", b" " * 20000)])
    changed = open_dataset(shards, 4)
    assert colours_of(changed) == [(0, 0, 255), *COLOURS[2:]]
    assert changed.fingerprint() != fingerprint


def test_fingerprint_tells_images_of_the_same_names_apart(tmp_path):
    file, fingerprints = tmp_path / "a.tar", set()
    for padding in (0, 0, 1, 20_000):  # within the blocks of the archive, and beyond
        write_tar(file, [("x.png", png("red") + bytes(padding)), ("x.cls", b"0")])
        fingerprints.add(open_dataset(file, 4).fingerprint())
    assert len(fingerprints) == 3


def test_shards_from_elsewhere(shards):
    """Other file systems are read through fsspec, by ranges."""
    remote = fsspec.filesystem("memory")
    for file in sorted(shards.glob("*.tar")):
        remote.pipe(f"/bucket/{file.name}", file.read_bytes())
    assert colours_of(open_dataset("memory://bucket/train-{000..002}.tar", 4)) == COLOURS
    assert colours_of(open_dataset("memory://bucket/train-*.tar?mix=1", 4)) == COLOURS


def test_shards_can_be_mixed_a_few_at_a_time(shards):
    whole, grouped = open_dataset(shards, 4), open_dataset(f"{shards}?mix=2", 4)
    orders = [grouped.epoch_order(sample_generator(0, 0, epoch)) for epoch in range(20)]
    for order in orders:
        assert sorted(order) == list(range(6))
        assert len({index // 2 for index in order[:4]}) == 2  # of six samples, the first four are of two shards
    assert len({tuple(order) for order in orders}) > 15
    assert {order[4] // 2 for order in orders} == {0, 1, 2}  # each shard is among the last ones in some epoch
    np.testing.assert_array_equal(orders[3], grouped.epoch_order(sample_generator(0, 0, 3)))
    mixed = [whole.epoch_order(sample_generator(0, 0, epoch)) for epoch in range(20)]
    assert any(len({index // 2 for index in order[:4]}) == 3 for order in mixed)


def test_shards_that_cannot_be_used(shards, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.tar cannot be read"):
        open_dataset(tmp_path / "missing.tar", 4)
    with pytest.raises(ValueError, match="there are no shards"):
        open_dataset(f"{tmp_path}/none-*.tar", 4)
    with pytest.raises(ValueError, match="unpack them"):
        open_dataset(tmp_path / "shard.tar.gz", 4)
    with pytest.raises(ValueError, match="no sample has a label 'txt'"):
        open_dataset(f"{shards}?label=txt", 4)
    file = shards / "train-001.tar"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"train-001\.tar cannot be read"):
        open_dataset(shards, 4)
    write_tar(file, [("a.png", png("red")), ("a.jpg", png("red"))])
    with pytest.raises(ValueError, match="sample a has several images"):
        open_dataset(shards, 4)
    write_tar(file, [("a.png", png("red"))])
    with pytest.raises(ValueError, match=r"a in .*train-001\.tar has no label"):
        open_dataset(shards, 4)
    write_tar(file, [("a.png", png("red")), ("a.cls", b"dog")])
    with pytest.raises(ValueError, match="all be whole numbers or all be names"):
        open_dataset(shards, 4)
    write_tar(file, [("a.png", b"nothing"), ("a.cls", b"1")])
    with pytest.raises(BrokenImageError, match=r"a in .*train-001\.tar cannot be read"):
        open_dataset(shards, 4).image(2)


def test_names_with_dots(tmp_path):
    """The first dot ends the name of a sample, as in WebDataset; the last ending says what a file is."""
    members = []
    for i, (image, label) in enumerate(
        [("scan.v2.png", "scan.v2.cls"), ("b.v2.png", "b.cls"), ("c.png", "c.v2.cls"), ("d.left.eye.PNG", "d.x.cls")]
    ):
        members += [(image, png(COLOURS[i])), (label, str(i).encode())]
    write_tar(tmp_path / "a.tar", members)
    dataset = open_dataset(tmp_path / "a.tar", 4)
    assert (colours_of(dataset), dataset.labels.tolist()) == (COLOURS[:4], [0, 1, 2, 3])
    assert dataset.notes == []
    assert dataset.origin(3).startswith("d in ")
    # the label of the image itself takes precedence over that of the sample
    write_tar(tmp_path / "a.tar", [("a.v1.png", png("red")), ("a.cls", b"0"), ("a.v1.cls", b"1"), ("a.v2.cls", b"7")])
    assert open_dataset(tmp_path / "a.tar", 4).labels.tolist() == [1]


def test_several_images_of_one_name(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.v1.png", png("red")), ("a.v2.png", png("blue")), ("a.v2.cls", b"0")])
    with pytest.raises(ValueError, match=r"sample a has several images \(v1\.png, v2\.png\).*'\?image=v1\.png'"):
        open_dataset(tmp_path / "a.tar", 4)
    assert colours_of(open_dataset(f"{tmp_path}/a.tar?image=v2.png", 4)) == [(0, 0, 255)]
    write_tar(tmp_path / "a.tar", [("a.png", png("red")), ("a.PNG", png("blue"))])
    with pytest.raises(ValueError, match=r"several images called a\.PNG; rename"):
        open_dataset(tmp_path / "a.tar", 4)


def test_samples_without_images_are_counted(tmp_path):
    members = [("a.png", png("red")), ("README", b""), ("b.txt", b""), ("c.heic", b""), ("d.v2.heic", b""), (".e", b"")]
    write_tar(tmp_path / "a.tar", members)
    summary = "2 .heic, 1 without ending, 1 .txt"
    assert open_dataset(tmp_path / "a.tar", 4).notes == [f"4 samples without an image left out: {summary}"]
    with pytest.raises(ValueError, match="hold no images"):
        open_dataset(f"{tmp_path}/a.tar?image=webp", 4)


@pytest.mark.parametrize("label", [b"9" * 30, b"-" + b"9" * 30, b"9" * 5000])
def test_labels_of_shards_beyond_64_bits(tmp_path, label):
    write_tar(tmp_path / "a.tar", [("a.png", png("red")), ("a.cls", label)])
    with pytest.raises(ValueError, match="is too large for a class id"):
        open_dataset(tmp_path / "a.tar", 4)


def test_deep_json_and_pipes(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", png("red")), ("a.json", b"[" * 60_000)])
    with pytest.raises(ValueError, match=r"a\.json cannot be read"):
        open_dataset(f"{tmp_path}/a.tar?label=json:kind", 4)
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(ValueError, match=r"b\.tar cannot be read: it is not a regular file"):
        open_dataset(tmp_path / "b.tar", 4)
