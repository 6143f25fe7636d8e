"""Hugging Face data sets and parquet files: columns, splits, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from pictures import COLOURS, colours_of, png

from sit_atconv.data import (
    BrokenImageError,
    HuggingFaceDataset,
    is_image_folder,
    open_dataset,
)


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


def test_files_of_a_pattern_are_read_in_order_and_told_apart(parquet):
    for i in range(3):
        folder = parquet({"jpg": [png(COLOURS[i])] * 2, "label": ["cat", "dog"]}, name=f"part-{i}.parquet")
    dataset = open_dataset(folder / "part-*.parquet", 4)
    assert colours_of(dataset) == [colour for colour in COLOURS[:3] for _ in range(2)]
    files = [open_dataset(folder / f"part-{i}.parquet", 4) for i in range(3)]
    parquet({"jpg": [png("red", 40)] * 2, "label": ["cat", "dog"]}, name="part-0.parquet")
    larger = open_dataset(folder / "part-0.parquet", 4)
    assert len({data.fingerprint() for data in (dataset, files[0], larger)}) == 3


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


def test_odd_columns_end_with_one_line(parquet):
    images = [{"bytes": png("red"), "path": None}] * 2
    for labels in (
        np.array([2**63, 1], np.uint64),
        [1.5, 2.5],
        [[1], [2]],
        [{"a": 1}, {"a": 2}],
        [None, 1],
        [None, None],
    ):
        folder = parquet({"image": images, "label": labels})
        with pytest.raises(
            ValueError, match=r"too large for a class id|all be whole numbers or all be names, but one is"
        ):
            open_dataset(folder, 4)
    assert open_dataset(parquet({"image": images, "label": [b"cat\xff", b"dog"]}), 4).classes == [r"cat\xff", "dog"]
    for values in ([5, 6], ["a", "b"], [[1], [2]], [{"bytes": None, "path": "/none"}] * 2, [{"path": 5}] * 2, [0.5, 1]):
        with pytest.raises(BrokenImageError, match=r"row 0 of .* holds no encoded image"):
            open_dataset(parquet({"image": values}), 4).image(0)


def test_classes_without_images_are_named_in_the_plan(parquet):
    dataset = open_dataset(parquet({"image": [png("red")] * 2, "label": [1, 2]}), 4)
    assert dataset.notes == ["1 of 3 classes have no image, but will be sampled: 0"]
    with pytest.raises(ValueError, match=r"output_dir=.* lies inside data="):
        dataset.check_output("output_dir", Path(dataset.source) / "run")
