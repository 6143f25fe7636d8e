"""Sets of images to be evaluated: folders, .npz batches and data sets.

Images are uint8 (H, W, C). An image set has a length, `image(index)`, `broken`: the images that could not be read and
are left out, and `notes`: what readers of the scores should know about the images. Sets that were opened with
`uniform=True` also have a `shape` (H, W, C).
"""

import hashlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from ..data import (
    IMAGE_EXTENSIONS,
    BrokenImageError,
    is_image_folder,
    open_dataset,
    open_image,
    read_image,
    scan_folder,
)
from ..utils.text import counted, one_line
from .npz_batch import BatchImages
from .output_files import COMPANIONS

EXIF_ORIENTATION = 0x0112
ODDITIES = {
    "rotated": "EXIF orientation, which is ignored",
    "transparent": "transparency, which is dropped",
    "deep": "more than 8 bits a channel, which are clipped",
}


class FolderImages:
    """All images in a folder and its sub-folders that training finds there, in the order of their paths.

    By default their pixels are those of clean-fid, Pillow's `Image.open(file).convert("RGB")`. With `image_size` they
    are read as in training: upright, and with transparency on white.

    Args:
        folder: the folder to search.
        image_size: crop each image to its centre square and resize it to this side. If None, images are left as they
            are.
        uniform: check from the files' headers that all images have the same shape. If all of them are grey, they then
            keep their one channel.
        max_broken_images: how many images this check may skip, because they cannot be read.

    Attributes:
        shape: (H, W, C), if `uniform`.
        notes: counts and names the files that are left out, and says how many of the images read so far clean-fid's
            way of reading changes.

    Raises:
        ValueError: if the folder is missing or holds no images or, with `uniform`, two images differ in size.
    """

    shape: tuple[int, int, int]

    def __init__(
        self, folder: str | Path, image_size: int | None = None, uniform: bool = False, max_broken_images: int = 0
    ):
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(
                f"{str(folder)!r} is not a folder; name a folder of images, a .npz batch, or a data set such as digits"
            )
        try:
            found = scan_folder(folder)
        except OSError as error:
            raise ValueError(f"{str(folder)!r} cannot be read: {error.strerror}; change its permissions") from error
        self.files = found.files
        summary = found.summary(COMPANIONS)
        if not self.files:
            left_out = f"; {summary}" if summary else ""
            raise ValueError(
                f"{str(folder)!r} holds no images ({', '.join(IMAGE_EXTENSIONS)}){left_out}; name another folder"
            )
        self.folder = folder
        self.left_out = [f"{folder}: {summary}"] if summary else []
        self.odd: dict[str, set[int]] = {oddity: set() for oddity in ODDITIES}  # indices of images
        self.broken: list[str] = []
        self.image_size = image_size
        self.channels = 3
        if uniform:
            self.shape = self._common_shape(max_broken_images)
            self.channels = self.shape[2]

    def _common_shape(self, max_broken_images: int) -> tuple[int, int, int]:
        sizes: dict[tuple[int, int], Path] = {}
        broken: list[str] = []  # only for this check: reading the images finds them again
        channels = 1
        for file in tqdm(self.files, desc="checking image sizes", leave=False):
            try:
                with open_image(file) as opened:
                    width, height = opened.size
                    channels = 1 if channels == 1 and opened.mode in ("1", "L") else 3
            except Exception as error:  # Pillow's plugins raise all sorts
                leave_out(broken_image(file, error), broken, max_broken_images)
                continue
            if self.image_size is not None:
                height = width = self.image_size
            sizes.setdefault((height, width), file)
            if len(sizes) > 1:
                (a, file_a), (b, file_b) = sizes.items()
                raise ValueError(
                    f"images differ in size: {file_a} is {a[1]}×{a[0]}, {file_b} is {b[1]}×{b[0]} (width × height); "
                    "give --image_size, or an --extractor that resizes: inception or timm:NAME"
                )
        if not sizes:
            raise BrokenImageError(f"{self.folder}: no image can be read, such as: {broken[0]}")
        return (*next(iter(sizes)), channels)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """One image, (H, W, C) uint8."""
        if self.image_size is not None:
            return read_image(self.files[index], self.image_size)[..., : self.channels]
        try:
            with open_image(self.files[index]) as opened:
                odd = {
                    "rotated": opened.getexif().get(EXIF_ORIENTATION, 1) >= 2,
                    "transparent": opened.has_transparency_data,
                    "deep": opened.mode[0] in "IF",
                }
                converted = opened.convert("RGB")
            opened.close()  # its pixels; an array needs as much again
            image = np.array(converted)
        except Exception as error:  # Pillow's plugins raise all sorts
            raise broken_image(self.files[index], error) from error
        for oddity in (name for name, found in odd.items() if found):
            self.odd[oddity].add(index)
        return image[..., : self.channels]

    @property
    def notes(self) -> list[str]:
        words = [
            f"{self.folder}: {counted(len(indices), 'image')} with {ODDITIES[oddity]}, as clean-fid does; with "
            "--image_size they are read as in training"
            for oddity, indices in self.odd.items()
            if indices
        ]
        return [*self.left_out, *words, *notes_on_broken(str(self.folder), self.broken)]


def broken_image(file: Path, error: Exception) -> BrokenImageError:
    """The error for an image that cannot be read; scores leave none out by themselves."""
    reason = str(error) or type(error).__name__
    return BrokenImageError(one_line(f"{file} cannot be read as an image: {reason}; repair or remove it"))


def leave_out(error: BrokenImageError, broken: list[str], limit: int) -> None:
    """Count an image that cannot be read among those that are left out.

    Raises:
        BrokenImageError: if these are more than the limit, `max_broken_images`.
    """
    broken.append(str(error))
    if len(broken) <= limit:
        return
    if limit == 0:
        raise BrokenImageError(f"{error}. To leave out such images, give --max_broken_images") from error
    raise BrokenImageError(
        f"max_broken_images={limit}: {len(broken)} images or more cannot be read; raise it, or repair or remove them: "
        + "; ".join(broken[:3])
    ) from error


def notes_on_broken(source: str, broken: list[str]) -> list[str]:
    """What readers of the scores should know about images that were left out."""
    if not broken:
        return []
    more = ", …" if len(broken) > 3 else ""
    what = f"{counted(len(broken), 'image')} left out as unreadable"
    return [f"{source}: {what}: {'; '.join(sorted(broken)[:3])}{more}"]


class DatasetImages:
    """The images of a data set that training can open, such as digits or a parquet file.

    Args:
        source: name or file of the data set.
        image_size: side of the images; needed for data sets whose images have no fixed size.
    """

    def __init__(self, source: str, image_size: int | None):
        self.dataset = open_dataset(source, image_size)
        self.dataset.check_pixels("images are compared, but")
        self.shape = (self.dataset.image_size, self.dataset.image_size, self.dataset.channels)
        self.broken: list[str] = []
        self._source = source

    @property
    def notes(self) -> list[str]:
        notes = [f"{self._source}: {note}" for note in self.dataset.notes]
        return notes + notes_on_broken(self._source, self.broken)

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> np.ndarray:
        """One image, (H, W, C) uint8."""
        return self.dataset.image(index)


ImageSet: TypeAlias = FolderImages | BatchImages | DatasetImages


def is_dataset(source: str) -> bool:
    """Whether the source is a data set that `open_dataset` knows, other than a folder of images."""
    path = Path(source)
    if path.is_dir():
        return not is_image_folder(path)
    return source == "digits" or path.is_file() or any(mark in source for mark in ":?*")


def open_images(
    field: str, source: str, image_size: int | None = None, uniform: bool = False, max_broken_images: int = 0
) -> ImageSet:
    """Open a folder of images, a .npz batch or a data set.

    Args:
        field: name of the option, for messages.
        source: the folder, file or data set.
        image_size: side to which images are cropped and resized. If None, they are left as they are.
        uniform: check that all images have the same shape, so that the set has a `shape`.
        max_broken_images: how many images this check may skip, because they cannot be read.

    Raises:
        ValueError: if the source cannot be opened; the message names the field.
    """
    try:
        if Path(source).suffix == ".npz":
            images = BatchImages(source, uniform)
            if image_size not in (None, images.shape[0]):
                raise ValueError(f"image_size={image_size}: the images of {source} are {images.shape[0]} pixels high")
            return images
        if is_dataset(source):
            return DatasetImages(source, image_size)
        return FolderImages(source, image_size, uniform, max_broken_images)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


class ImagesHash:
    """The SHA-256 of images in their order: of shapes and pixels, whatever files the images came from."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, image: np.ndarray) -> None:
        """Add one image (H, W, C); a grey one counts as its three equal channels."""
        image = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        self._digest.update(str(image.shape).encode())
        self._digest.update(image.tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
