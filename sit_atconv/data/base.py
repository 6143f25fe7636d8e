"""What all image data sets share, and the two that need no reader of their own: digits and folders.

S image side in pixels, C channels. An item is (pixels, label): float32 (C, S, S) in [−1, 1] and a class id.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..utils.checks import check_count
from ..utils.files import write_atomically
from .decode import IMAGE_EXTENSIONS, read_image


class ImageDataset(Dataset):
    """A set of square images, with or without classes.

    Attributes:
        name: short, for run folders and reports.
        source: what `open_dataset` was given.
        classes: class names, by id; none for unconditional data, whose labels are all 0.
        labels: (len,) the class id of each image.
        channels: of the images: 1 or 3.
        image_size: side S, in pixels.
    """

    name: str
    source: str
    classes: list[str]
    labels: np.ndarray
    channels: int
    image_size: int
    is_latents = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def reference(self) -> str:
        """The source of the images that samples are to be compared with."""
        return self.source

    @property
    def num_classes(self) -> int:
        """Classes for a model to tell apart: without classes, all images are of one."""
        return max(1, len(self.classes))

    def image(self, index: int) -> np.ndarray:
        """One image as uint8, (S, S, C).

        Raises:
            BrokenImageError: naming the image, where it cannot be read.
        """
        raise NotImplementedError

    def origin(self, index: int) -> str:
        """Where an image comes from, in words that a user can act on."""
        return f"image {index} of {self.source}"

    def fingerprint(self) -> str:
        """A SHA-256 that changes when images are added, removed, replaced by others of another size or relabelled."""
        return hash_of(self.image_size, self.classes, self.labels)

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        """The order of one epoch, a permutation of all indices."""
        return generator.permutation(len(self))

    def tensor(self, index: int, flip: bool = False) -> torch.Tensor:
        """One image as float32 (C, S, S) in [−1, 1], mirrored where `flip`."""
        image = self.image(index)[:, :: -1 if flip else 1]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # (C, S, S)
        return pixels.float() / 127.5 - 1

    def verify(self) -> None:
        """Raise ValueError where files are no longer as they were written. It may read all of them: do it once."""

    def check_training(self, vae: torch.nn.Module | None, horizontal_flip: bool) -> None:
        """Raise ValueError where this data cannot be trained on with this VAE (None: in pixels) or with mirroring."""


class DigitsDataset(ImageDataset):
    """scikit-learn's 1,797 real handwritten digits, 8×8, 17 grey levels spread over 0…255."""

    name = source = "digits"
    channels = 1

    def __init__(self, image_size: int | None = None):
        from sklearn.datasets import load_digits

        if image_size not in (None, 8):
            raise ValueError(f"image_size={image_size}: the digits are 8×8; leave image_size out")
        digits = load_digits()
        self.image_size = 8
        self.classes = [str(name) for name in digits.target_names]
        self.labels = digits.target
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)

    def image(self, index: int) -> np.ndarray:
        return self._images[index]

    def fingerprint(self) -> str:
        return hash_of(super().fingerprint(), self._images)


class FolderDataset(ImageDataset):
    """A folder of images: one sub-folder per class, or, without sub-folders, images without classes.

    Images are found at any depth inside a class folder. Files and folders whose name starts with a dot are not seen.

    Args:
        folder: to search.
        image_size: side S.
        label: "folder", or "none" to take all images below the folder without classes.

    Raises:
        ValueError: for a folder that is missing or empty, class folders without images, or images beside them.
    """

    channels = 3

    def __init__(self, folder: str | Path, image_size: int | None = None, label: str = "folder"):
        folder = Path(folder)
        source = f"data={str(folder)!r}"
        if not folder.is_dir():
            raise ValueError(f"{source} is no folder; give 'digits', a folder of images, or another source of data")
        if label not in ("folder", "none"):
            raise ValueError(f"{source}: label={label!r} must be 'folder' or 'none'")
        check_image_size(source, image_size)
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        class_folders = [entry for entry in entries if entry.is_dir()]
        if label == "none" or not class_folders:
            self.classes = []
            self.files = list_images(folder)
            self.labels = np.zeros(len(self.files), np.int64)
            if not self.files:
                raise ValueError(f"{source} holds no images and no class folders with images")
        else:
            if loose := [entry.name for entry in entries if entry.suffix.lower() in IMAGE_EXTENSIONS]:
                raise ValueError(
                    f"{source} holds images beside its class folders ({', '.join(loose[:3])}…); move them into one, "
                    "or take all images without classes with '?label=none' behind the folder"
                )
            files = [list_images(class_folder) for class_folder in class_folders]
            if empty := [entry.name for entry, found in zip(class_folders, files, strict=True) if not found]:
                raise ValueError(f"{source}: class folders without images: {', '.join(empty)}; fill or remove them")
            self.classes = [entry.name for entry in class_folders]
            self.files = [file for found in files for file in found]
            self.labels = np.repeat(np.arange(len(files)), [len(found) for found in files])
        self.name = folder.resolve().name
        self.source = str(folder)
        self.image_size = image_size
        self._folder = folder

    def image(self, index: int) -> np.ndarray:
        return read_image(self.files[index], self.image_size)

    def origin(self, index: int) -> str:
        return str(self.files[index])

    def fingerprint(self) -> str:
        files = [(file.relative_to(self._folder).as_posix(), file.stat().st_size) for file in self.files]
        return hash_of(super().fingerprint(), files)


def list_images(folder: str | Path) -> list[Path]:
    """All images below a folder, in the order of their paths, without what starts with a dot; links are followed."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."]
    return sorted(found)


class EncodedDataset(ImageDataset):
    """Images that lie encoded (JPEG, PNG…) in a larger file."""

    channels = 3

    def encoded(self, index: int) -> bytes:
        """The bytes of an image file."""
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        return read_image(self.encoded(index), self.image_size, self.origin(index))


def class_names(field: str, values: list, names: list[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Names and ids of classes from what stands beside each image: all whole numbers (ids), or all text (names).

    Args:
        field: for messages.
        values: one for each image.
        names: by id, where they are known.

    Raises:
        ValueError: for a mixture, ids below 0 or without a name, or ids that leave more than half of the classes empty.
    """
    try:
        labels = np.array([int(value) for value in values], np.int64)
        if any(isinstance(value, float) for value in values):
            raise ValueError
    except (TypeError, ValueError):
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{field}: labels must all be whole numbers or all be names") from None
        found, labels = np.unique(np.array(values), return_inverse=True)
        return [str(name) for name in found], labels.astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"{field}: label {labels.min()} is below 0: images without a class; add '?label=none'")
    present = len(np.unique(labels))
    if names is None and labels.max() >= 2 * present:
        raise ValueError(f"{field}: labels reach {labels.max()}, but there are {present} classes; number them from 0")
    if names is not None and labels.max() >= len(names):
        raise ValueError(f"{field}: labels reach {labels.max()}, but there are names of {len(names)} classes")
    return list(names or map(str, range(labels.max() + 1))), labels


def check_image_size(source: str, image_size: int | None) -> None:
    """Raise ValueError unless a size is given."""
    if image_size is None:
        raise ValueError(f"image_size must be given for {source}, such as --image_size 64")
    check_count("image_size", image_size)


def hash_of(*parts) -> str:
    """SHA-256 of arrays and of what JSON can hold."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def cached_index(key: str, build) -> dict:
    """What `build()` finds in a large file, kept as JSON in the user's cache, so that it is searched once.

    `key` says which file it is, and changes when the file does. Without a writable cache, nothing is kept.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sit_atconv" / "index"
    file = cache / f"{hash_of(key)}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        index = build()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(index))
    except OSError:
        pass
    return index
