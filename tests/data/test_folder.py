"""Folders of images: what is found, which classes they have, and what is refused."""

import numpy as np
import pytest
import torch
from pictures import png
from PIL import Image

from sit_atconv.data import (
    FolderDataset,
    is_image_folder,
    open_dataset,
)


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
    with pytest.raises(ValueError, match="missing' does not exist"):
        open_dataset(tmp_path / "missing", 8)
    with pytest.raises(ValueError, match="not a known kind of source"):
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
