"""Image data from every kind of source: what is found, which classes it has, and what is refused."""

import io
import json
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from sit_atconv.data import (
    BrokenImageError,
    DigitsDataset,
    FolderDataset,
    HuggingFaceDataset,
    LMDBDataset,
    ShardDataset,
    TrainingView,
    is_image_folder,
    open_dataset,
    sample_generator,
    source_name,
)

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (250, 250, 0), (0, 250, 250)]


def png(colour, size=4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def colours_of(dataset) -> list[tuple]:
    return [tuple(dataset.image(i)[0, 0].tolist()) for i in range(len(dataset))]


# Digits and folders


def test_digits_are_scikit_learns():
    dataset, digits = open_dataset("digits"), load_digits()
    assert isinstance(dataset, DigitsDataset)
    assert len(dataset) == 1797
    assert (dataset.channels, dataset.image_size, dataset.classes) == (1, 8, [str(i) for i in range(10)])
    for index in (0, 1, 1000, 1796):
        pixels = dataset.tensor(index)
        assert pixels.dtype == torch.float32
        assert pixels.shape == (1, 8, 8)
        assert dataset.labels[index] == digits.target[index]
        np.testing.assert_array_equal(dataset.image(index)[..., 0], np.round(digits.images[index] / 16 * 255))
        np.testing.assert_allclose(pixels[0], digits.images[index] / 8 - 1, atol=0.51 / 127.5)
        assert torch.equal(dataset.tensor(index, flip=True), pixels.flip(-1))
    everything = torch.stack([dataset.tensor(i) for i in range(100)])
    assert everything.min() == -1
    assert everything.max() == 1


@pytest.mark.parametrize("image_size", [16, 0])
def test_digits_have_one_size(image_size):
    open_dataset("digits", 8)
    with pytest.raises(ValueError, match=f"image_size={image_size}"):
        open_dataset("digits", image_size)


@pytest.fixture
def folder(tmp_path):
    """Two classes: one wide, one tall image with a distinct centre square."""
    for name in ("b_cat", "a_dog"):
        (tmp_path / name).mkdir()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "b_cat" / "wide.png")
    (tmp_path / "b_cat" / "deeper").mkdir()
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "b_cat" / "deeper" / "tall.PNG")
    Image.fromarray(wide[..., 0]).save(tmp_path / "a_dog" / "grey.png")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "a_dog" / "._grey.png").write_bytes(b"of another system")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folder(folder):
    dataset = open_dataset(folder, image_size=4)
    assert isinstance(dataset, FolderDataset)
    assert dataset.classes == ["a_dog", "b_cat"]
    assert (len(dataset), dataset.channels, dataset.image_size, dataset.name) == (3, 3, 4, folder.name)
    assert dataset.labels.tolist() == [0, 1, 1]
    assert [file.name for file in dataset.files] == ["grey.png", "tall.PNG", "wide.png"]
    grey, tall, wide = (dataset.tensor(i) for i in range(3))
    torch.testing.assert_close(grey, torch.full((3, 4, 4), 200 / 127.5 - 1))
    colour = (torch.tensor([200.0, 100.0, 50.0]) / 127.5 - 1).view(3, 1, 1).expand(3, 4, 4)
    torch.testing.assert_close(wide, colour)
    torch.testing.assert_close(tall, colour)
    assert open_dataset(folder, image_size=9).tensor(2).shape == (3, 9, 9)
    assert is_image_folder(folder)


def test_folder_without_classes(folder):
    flat = open_dataset(folder / "a_dog", image_size=4)
    assert (flat.classes, flat.num_classes, flat.labels.tolist()) == ([], 1, [0])
    everything = open_dataset(f"{folder}?label=none", image_size=4)
    assert (everything.classes, everything.num_classes, len(everything)) == ([], 1, 3)


def test_fingerprint_tells_data_apart(folder):
    fingerprint = open_dataset(folder, 4).fingerprint()
    assert open_dataset(folder, 4).fingerprint() == fingerprint
    others = [open_dataset(folder, 5).fingerprint(), open_dataset(f"{folder}?label=none", 4).fingerprint()]
    (folder / "a_dog" / "grey.png").rename(folder / "a_dog" / "gray.png")
    others.append(open_dataset(folder, 4).fingerprint())
    (folder / "a_dog" / "gray.png").write_bytes(png("red", 40))
    others.append(open_dataset(folder, 4).fingerprint())
    assert len({fingerprint, *others}) == 5


def test_folders_that_cannot_be_used(tmp_path, folder):
    with pytest.raises(ValueError, match="missing' is no folder"):
        open_dataset(tmp_path / "missing", 8)
    with pytest.raises(ValueError, match="is no folder"):
        open_dataset(tmp_path / "b_cat" / "wide.png", 8)
    with pytest.raises(ValueError, match="image_size must be given"):
        open_dataset(folder)
    with pytest.raises(ValueError, match="image_size=0"):
        open_dataset(folder, 0)
    with pytest.raises(ValueError, match="unknown options: lable; there are: label"):
        open_dataset(f"{folder}?lable=none", 4)
    (folder / "empty_class").mkdir()
    with pytest.raises(ValueError, match="class folders without images: empty_class"):
        open_dataset(folder, 8)
    with pytest.raises(ValueError, match="holds no images"):
        open_dataset(folder / "empty_class", 8)
    (folder / "loose.jpg").write_bytes(png("red"))
    with pytest.raises(ValueError, match=r"images beside its class folders \(loose\.jpg"):
        open_dataset(folder, 8)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("some/photos/", "photos"),
        ("hf:uoft-cs/cifar10?split=test", "cifar10"),
        ("data/train-*.parquet", "train"),
        ("https://host/imagenet-{000..145}.tar?label=cls", "imagenet"),
        ("latents:cats", "cats"),
        ("ffhq.lmdb", "ffhq"),
    ],
)
def test_names_for_run_folders(source, name):
    assert source_name(source) == name


# Parquet and Hugging Face


@pytest.fixture
def parquet(tmp_path):
    """Function: column name -> values, and the features that are not plain; writes a parquet file."""
    datasets = pytest.importorskip("datasets")

    def write(columns: dict, features: dict | None = None, name: str = "part-0.parquet"):
        data = datasets.Dataset.from_dict(columns)
        for column, feature in (features or {}).items():
            data = data.cast_column(column, feature)
        (tmp_path / "parquet").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "parquet" / name)
        return tmp_path / "parquet"

    return write


def test_parquet_with_types(parquet):
    from datasets import ClassLabel, Image

    images = [{"bytes": png(colour), "path": None} for colour in COLOURS]
    columns = {"id": list(range(6)), "picture": images, "kind": [1, 0, 2, 1, 0, 1]}
    folder = parquet(columns, {"picture": Image(), "kind": ClassLabel(names=["warm", "cold", "grey", "unused"])})
    dataset = open_dataset(folder, 4)
    assert isinstance(dataset, HuggingFaceDataset)
    assert dataset.classes == ["warm", "cold", "grey", "unused"]
    assert dataset.labels.tolist() == [1, 0, 2, 1, 0, 1]
    assert colours_of(dataset) == COLOURS
    assert not is_image_folder(folder)
    assert colours_of(open_dataset(folder / "part-0.parquet", 4)) == COLOURS
    assert open_dataset(f"{folder}?label=none", 4).classes == []
    assert open_dataset(f"{folder}?label=id", 4).classes == [str(i) for i in range(6)]
    parquet(
        columns, {"picture": Image(), "kind": ClassLabel(names=["warm", "cold", "grey", "unused"])}, "part-1.parquet"
    )
    assert colours_of(open_dataset(folder / "part-*.parquet", 4)) == COLOURS * 2
    by_name = open_dataset(f"hf:{folder}?split=train", 4)  # as a name: load_dataset knows folders, too
    assert (colours_of(by_name), by_name.classes) == (COLOURS * 2, dataset.classes)
    assert by_name.fingerprint() != dataset.fingerprint()


def test_a_folder_of_parquet_files_has_splits(parquet):
    parquet({"jpg": [png(c) for c in COLOURS[:4]]}, name="train.parquet")
    folder = parquet({"jpg": [png(c) for c in COLOURS[4:]]}, name="test.parquet")
    assert colours_of(open_dataset(folder, 4)) == COLOURS[:4]
    assert colours_of(open_dataset(f"{folder}?split=test", 4)) == COLOURS[4:]
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_dataset(f"{folder}?split=dev", 4)


def test_parquet_without_types(parquet):
    folder = parquet({"jpg": [png(c) for c in COLOURS[:4]], "label": ["dog", "cat", "dog", "ant"]})
    dataset = open_dataset(folder, 4)
    assert (dataset.classes, dataset.labels.tolist()) == (["ant", "cat", "dog"], [2, 1, 2, 0])
    assert colours_of(dataset) == COLOURS[:4]


def test_parquet_that_cannot_be_used(parquet, tmp_path):
    folder = parquet({"a": [png("red")] * 2, "b": [0, 1], "label": [-1, 0], "image": [b"no image", None]})
    with pytest.raises(ValueError, match=r"no column 'c'; there are: a, b, label, image"):
        open_dataset(f"{folder}?image=c", 4)
    with pytest.raises(ValueError, match="label -1 is below 0"):
        open_dataset(folder, 4)
    with pytest.raises(ValueError, match="unknown options: column"):
        open_dataset(f"{folder}?column=c", 4)
    dataset = open_dataset(f"{folder}?label=none", 4)
    with pytest.raises(BrokenImageError, match=r"row 0 of .* cannot be read"):
        dataset.image(0)
    with pytest.raises(BrokenImageError, match=r"row 1 of .* holds no encoded image"):
        dataset.image(1)
    with pytest.raises(ValueError, match="does not exist"):
        open_dataset(tmp_path / "none.parquet", 4)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_dataset(tmp_path / "broken.parquet", 4)


def test_a_data_set_that_cannot_be_fetched():
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"data='hf:nobody/nothing' cannot be loaded"):
        open_dataset("hf:nobody/nothing", 8)


# WebDataset shards


def write_tar(file, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Three shards of two samples, with a class, a caption and a JSON file each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        members = []
        for i in (2 * shard, 2 * shard + 1):
            details = json.dumps({"kind": ["warm", "cold"][i % 2]}).encode()
            members += [(f"a/{i}.json", details), (f"a/{i}.png", png(COLOURS[i])), (f"a/{i}.cls", str(i // 2).encode())]
        write_tar(folder / f"train-{shard:03d}.tar", [*members, ("README", b"not a sample")])
    return folder


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


# LMDB


@pytest.fixture
def database(tmp_path):
    """Function: entries -> an LMDB of them."""
    lmdb = pytest.importorskip("lmdb")
    made = []

    def write(entries: dict[bytes, bytes], subdir: bool = True):
        path = tmp_path / f"images-{len(made)}{'' if subdir else '.lmdb'}"
        made.append(path)
        with lmdb.open(str(path), map_size=2**22, subdir=subdir) as environment, environment.begin(write=True) as txn:
            for key, value in entries.items():
                txn.put(key, value)
        return path

    return write


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


def test_sources_are_read_by_workers(database, shards):
    """Also where the source was opened, and read from, before the workers were started."""
    for place in (shards, database({str(i).encode(): png(colour) for i, colour in enumerate(COLOURS)})):
        dataset = open_dataset(place, 4)
        view = TrainingView(dataset, 0, False, (3, 4, 4))
        expected = [dataset.tensor(i) for i in range(6)]
        batches = [[(i, i), (i + 1, i + 1)] for i in (0, 2, 4)]
        loader = DataLoader(view, batch_sampler=batches, num_workers=2, collate_fn=view.collate)
        assert torch.equal(torch.cat([batch["x"] for batch in loader]), torch.stack(expected))
        copy = pickle.loads(pickle.dumps(dataset))  # as workers that are not forked get it
        assert torch.equal(copy.tensor(3), expected[3])
        assert torch.equal(open_dataset(place, 4).tensor(3), dataset.tensor(3))
