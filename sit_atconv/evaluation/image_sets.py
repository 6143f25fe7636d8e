"""Sets of images to be evaluated: folders, .npz batches, data sets; and statistics of a reference, kept in a file.

Images are uint8 (H, W, C). An image set has a length, `image(index)` and `notes`, what a reader of its figures should
know. A .npz batch is the container of the ADM evaluations: arr_0 (N, H, W, C) uint8.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from ..data import open_dataset, read_image
from ..utils.files import check_new_file, staged
from .npz_batch import BatchImages
from .records import COMPANIONS

EXIF_ORIENTATION = 0x0112
ODDITIES = {
    "rotated": "EXIF orientation, which is ignored",
    "transparent": "transparency, which is dropped",
    "deep": "more than 8 bits a channel, which are clipped",
}


class FolderImages:
    """All images under a folder, sub-folders included, in the order of their paths.

    Without `image_size` they are read as clean-fid reads them, by Pillow's `Image.open(file).convert("RGB")`; with it,
    as in training: upright, transparency on white.

    Args:
        folder: to search.
        image_size: crop each image to its centre square and resize it to this side; None leaves it as it is.
        uniform: make sure that all images have the same shape, by a look at each file's header. Grey images then keep
            their one channel, where all are grey.

    Attributes:
        shape: (H, W, C) where `uniform`.
        notes: says what in the folder is no image, and how many of the images read so far clean-fid's way of reading
            does no justice to.

    Raises:
        ValueError: for a folder that is missing or without images; where `uniform`, naming two files of different size.
    """

    def __init__(self, folder: str | Path, image_size: int | None = None, uniform: bool = False):
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(
                f"{str(folder)!r} is no folder; name a folder of images, a .npz batch, or a data set such as digits"
            )
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        self.files = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
        if not self.files:
            raise ValueError(f"{str(folder)!r} holds no images ({', '.join(IMG_EXTENSIONS)})")
        others = [file.name for file in files if file.suffix.lower() not in IMG_EXTENSIONS]
        others = [name for name in others if name not in COMPANIONS]
        self.folder = folder
        self.left_out = (
            [f"{folder}: {len(others)} files are no images and are left out ({others[0]}…)"] if others else []
        )
        self.odd = {oddity: set() for oddity in ODDITIES}  # indices of images
        self.image_size = image_size
        self.channels = 3
        if uniform:
            self.shape = self._common_shape()
            self.channels = self.shape[2]

    def _common_shape(self) -> tuple[int, int, int]:
        sizes = {}
        channels = 1
        for file in tqdm(self.files, desc="checking image sizes", leave=False):
            try:
                with Image.open(file) as opened:
                    width, height = opened.size
                    channels = 1 if channels == 1 and opened.mode in ("1", "L") else 3
            except Exception as error:
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
            if self.image_size is not None:
                height = width = self.image_size
            sizes.setdefault((height, width), file)
            if len(sizes) > 1:
                (a, file_a), (b, file_b) = sizes.items()
                raise ValueError(
                    f"images differ in size: {file_a} is {a[1]}×{a[0]}, {file_b} is {b[1]}×{b[0]} (width × height); "
                    "give --image_size, or an --extractor that resizes: inception or timm:NAME"
                )
        return (*next(iter(sizes)), channels)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """One image, (H, W, C) uint8."""
        if self.image_size is not None:
            return read_image(self.files[index], self.image_size)[..., : self.channels]
        try:
            with Image.open(self.files[index]) as opened:
                odd = {
                    "rotated": opened.getexif().get(EXIF_ORIENTATION, 1) >= 2,
                    "transparent": opened.has_transparency_data,
                    "deep": opened.mode[0] in "IF",
                }
                image = np.array(opened.convert("RGB"))
        except Exception as error:  # Pillow's plugins raise all sorts
            raise ValueError(f"{self.files[index]} cannot be read as an image: {error}") from error
        for oddity in (name for name, found in odd.items() if found):
            self.odd[oddity].add(index)
        return image[..., : self.channels]

    @property
    def notes(self) -> list[str]:
        words = [
            f"{self.folder}: {len(indices)} images have {ODDITIES[oddity]}, as clean-fid does; with --image_size they "
            "are read as in training"
            for oddity, indices in self.odd.items()
            if indices
        ]
        return [*self.left_out, *words]


class DatasetImages:
    """The images of a data set that training knows by name or file: digits, parquet…"""

    def __init__(self, source: str, image_size: int | None):
        self.dataset = open_dataset(source, image_size)
        self.shape = (self.dataset.image_size, self.dataset.image_size, self.dataset.channels)
        self.notes = []

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> np.ndarray:
        """One image, (H, W, C) uint8."""
        return self.dataset.image(index)


def is_dataset(source: str) -> bool:
    """Whether the source is no folder of images, but one of the other kinds that `open_dataset` knows."""
    path = Path(source)
    if path.is_dir():
        files = [file.suffix.lower() for file in path.rglob("*") if file.is_file()]
        return bool(files) and not any(suffix in IMG_EXTENSIONS for suffix in files)
    return source == "digits" or path.is_file() or any(mark in source for mark in ":?*")


def open_images(
    field: str, source: str, image_size: int | None = None, uniform: bool = False
) -> FolderImages | BatchImages | DatasetImages:
    """Open a folder, a .npz batch or a data set: an image set, with a `shape` where `uniform`.

    Raises:
        ValueError: as the image sets, naming the field as well.
    """
    try:
        if Path(source).suffix == ".npz":
            images = BatchImages(source, uniform)
            if image_size not in (None, images.shape[0]):
                raise ValueError(f"image_size={image_size}: the images of {source} are {images.shape[0]} pixels high")
            return images
        if is_dataset(source):
            return DatasetImages(source, image_size)
        return FolderImages(source, image_size, uniform)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


@dataclass
class ReferenceStatistics:
    """What a file keeps of a reference, under the names of ADM's reference batches.

    Attributes:
        mu, sigma: mean (F,) and covariance (F, F) of the features, where the file has them.
        mu_s, sigma_s: of the spatial features, likewise.
        features: (N, F) of the images, likewise.
        stamp: how they were made: "extractor", "weights" (SHA-256), "resize", "num_images", "image_size" and "sha256"
            of the images. Files of others have none.
    """

    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None
    features: np.ndarray | None = None
    stamp: dict = field(default_factory=dict)


def load_statistics(file: str | Path, extractor: str | None = None) -> ReferenceStatistics:
    """Read the statistics of a .npz file; one of images alone gives empty ones.

    ADM's files do not say what made them, but no others have spatial statistics (mu_s, sigma_s): theirs are taken for
    those of "inception-adm". clean-fid, pytorch-fid and EDM write mu and sigma alone.

    Args:
        file: to read.
        extractor: that made the statistics, where the file does not say so.

    Raises:
        ValueError: for a file that cannot be read, or whose arrays do not fit together.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "features") if name in arrays}
            stamp = json.loads(str(arrays["stamp"])) if "stamp" in arrays else {}
            has_images = "arr_0" in arrays
    except Exception as error:  # zipfile, NumPy and JSON each have their own
        raise ValueError(f"reference={str(file)!r} cannot be read as .npz: {error}") from error
    if not has_images and not {"mu", "sigma"} <= found.keys():
        raise ValueError(f"reference={str(file)!r} holds neither images (arr_0) nor statistics (mu, sigma)")
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean in found:
            F = len(found[mean])
            if covariance not in found or found[covariance].shape != (F, F):
                raise ValueError(f"reference={str(file)!r}: {covariance} is missing or does not fit {mean} ({F},)")
            if not (np.isfinite(found[mean]).all() and np.isfinite(found[covariance]).all()):
                raise ValueError(f"reference={str(file)!r}: {mean} and {covariance} hold numbers that are not finite")
    if stamp and extractor not in (None, stamp["extractor"]):
        raise ValueError(
            f"reference_extractor={extractor!r}: reference={str(file)!r} says that {stamp['extractor']} made it; leave "
            "the option out"
        )
    if found and not stamp:
        stamp = {"extractor": extractor or ("inception-adm" if "mu_s" in found else None)}
        stamp["assumed"] = extractor is None and stamp["extractor"] is not None
    return ReferenceStatistics(**found, stamp=stamp)


def save_statistics(file: str | Path, statistics: ReferenceStatistics) -> None:
    """Write statistics to a new .npz file, under ADM's names, with a stamp."""
    check_new_file("save_statistics", file)
    arrays = {name: getattr(statistics, name) for name in ("mu", "sigma", "mu_s", "sigma_s", "features")}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged(file) as part, part.open("wb") as opened:
        np.savez(opened, **arrays, stamp=np.array(json.dumps(statistics.stamp)))


class ImagesHash:
    """SHA-256 of images in their order: shapes and pixels, whatever container they came from."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, image: np.ndarray) -> None:
        """Add one image (H, W, C); a grey one counts as its three equal channels."""
        image = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        self._digest.update(str(image.shape).encode())
        self._digest.update(image.tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
