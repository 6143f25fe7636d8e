"""Folders of image files, with one sub-folder per class or without classes."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.text import one_line
from .base import ImageDataset, check_image_size, hash_of
from .decode import read_image
from .scan import scan_folder


class FolderDataset(ImageDataset):
    """A folder of images: one sub-folder per class, or, if there are no sub-folders, images without classes.

    `scan_folder` finds the images, at any depth of a class folder.

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
            raise ValueError(f"{source} is not a folder; give 'digits', a folder of images, or another source of data")
        if label not in ("folder", "none"):
            raise ValueError(f"{source}: label={label!r} must be 'folder' or 'none'")
        self.name = folder.resolve().name
        self.source = str(folder)
        self.image_size = check_image_size(source, image_size)
        self._folder = folder
        try:
            self._found = found = scan_folder(folder)
        except OSError as error:
            raise ValueError(f"{source} cannot be read: {error.strerror}; change its permissions") from error
        self.files = found.files
        class_folders = [entered for entered in found.folders if entered.parent == folder]
        if label == "none" or not class_folders:
            self.classes: list[str] = []
            self.labels = np.zeros(len(self.files), np.int64)
            if not self.files:
                raise ValueError(
                    f"{source} holds no images and no class folders with images; give another folder{self._left_out()}"
                )
        else:
            self._read_classes(source, class_folders)

    def _read_classes(self, source: str, class_folders: list[Path]) -> None:
        """Find the class of each image: the folder below the data's in which it lies."""
        depth = len(self._folder.parts)
        if loose := [file.name for file in self.files if len(file.parts) == depth + 1]:
            raise ValueError(
                f"{source} holds images beside its class folders ({one_line(', '.join(loose[:3]))}…); move them into "
                "one, or add '?label=none' to the folder to take all images without classes"
            )
        ids = {entered.name: label for label, entered in enumerate(class_folders)}
        self.labels = np.array([ids[file.parts[depth]] for file in self.files], np.int64)
        counts = np.bincount(self.labels, minlength=len(ids))
        if empty := [entered.name for entered, count in zip(class_folders, counts, strict=True) if not count]:
            raise ValueError(
                f"{source}: class folders without images: {one_line(', '.join(empty))}; fill or remove "
                f"them{self._left_out()}"
            )
        self.classes = [one_line(entered.name) for entered in class_folders]

    def _left_out(self) -> str:
        return f" ({summary})" if (summary := self._found.summary()) else ""

    @property
    def notes(self) -> list[str]:
        summary = self._found.summary()
        return ([] if summary is None else [summary]) + super().notes

    def check_output(self, field: str, folder: Path) -> None:
        if self._found.contains(folder):
            raise ValueError(
                f"{field}={str(folder)!r} lies inside data={self.source!r}: what is written there would be taken for "
                "data; name a folder outside"
            )

    def image(self, index: int) -> np.ndarray:
        return read_image(self.files[index], self.image_size)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(read_image(self.files[index]))

    def origin(self, index: int) -> str:
        return one_line(self.files[index])

    def fingerprint(self) -> str:
        files = [(file.relative_to(self._folder).as_posix(), file.stat().st_size) for file in self.files]
        return hash_of(super().fingerprint(), files)
