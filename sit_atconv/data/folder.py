"""Folders of image files, with one sub-folder per class or without classes."""

import os
from pathlib import Path

import numpy as np

from .base import ImageDataset, check_image_size, hash_of
from .decode import IMAGE_EXTENSIONS, read_image


class FolderDataset(ImageDataset):
    """A folder of images: one sub-folder per class, or, if there are no sub-folders, images without classes.

    Images are found at any depth of a class folder. Files and folders whose names start with a dot are ignored.

    Args:
        folder: folder of the images.
        image_size: side S of the images in pixels.
        label: "folder" to take the sub-folders as classes, "none" to take all images in the folder without classes.

    Raises:
        ValueError: if the folder is missing or holds no images, or if class folders are empty or have images beside
            them.
    """

    channels = 3

    def __init__(self, folder: str | Path, image_size: int | None = None, label: str = "folder"):
        folder = Path(folder)
        source = f"data={str(folder)!r}"
        if not folder.is_dir():
            raise ValueError(f"{source} is no folder; give 'digits', a folder of images, or another source of data")
        if label not in ("folder", "none"):
            raise ValueError(f"{source}: label={label!r} must be 'folder' or 'none'")
        self.name = folder.resolve().name
        self.source = str(folder)
        self.image_size = check_image_size(source, image_size)
        self._folder = folder
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        class_folders = [entry for entry in entries if entry.is_dir()]
        if label == "none" or not class_folders:
            self.classes: list[str] = []
            self.files = list_images(folder)
            self.labels = np.zeros(len(self.files), np.int64)
            if not self.files:
                raise ValueError(f"{source} holds no images and no class folders with images; give another folder")
        else:
            if loose := [entry.name for entry in entries if entry.suffix.lower() in IMAGE_EXTENSIONS]:
                raise ValueError(
                    f"{source} holds images beside its class folders ({', '.join(loose[:3])}…); move them into one, "
                    "or add '?label=none' to the folder to take all images without classes"
                )
            self._read_classes(source, class_folders)

    def _read_classes(self, source: str, class_folders: list[Path]) -> None:
        """List the images of each class folder."""
        files = [list_images(class_folder) for class_folder in class_folders]
        if empty := [entry.name for entry, found in zip(class_folders, files, strict=True) if not found]:
            raise ValueError(f"{source}: class folders without images: {', '.join(empty)}; fill or remove them")
        self.classes = [entry.name for entry in class_folders]
        self.files = [file for found in files for file in found]
        self.labels = np.repeat(np.arange(len(files)), [len(found) for found in files])

    def image(self, index: int) -> np.ndarray:
        return read_image(self.files[index], self.image_size)

    def origin(self, index: int) -> str:
        return str(self.files[index])

    def fingerprint(self) -> str:
        files = [(file.relative_to(self._folder).as_posix(), file.stat().st_size) for file in self.files]
        return hash_of(super().fingerprint(), files)


def list_images(folder: str | Path) -> list[Path]:
    """Return all images in a folder at any depth, sorted by path. Links are followed; hidden files and folders are not
    searched."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."]
    return sorted(found)
