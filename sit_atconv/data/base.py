"""What all image data sets have in common, and the functions that they share.

S image side in pixels, C channels. A tensor of pixels is float32 (C, S, S) in [−1, 1]; a label is a class id.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..utils.checks import check_count
from ..utils.files import write_atomically
from .decode import read_image

MAX_LABEL = 2**63 - 1  # of int64
WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")


class ImageDataset(Dataset):
    """A set of square images, with or without classes.

    Attributes:
        name: short name for run folders and reports.
        source: the string that `open_dataset` was given.
        classes: class names, by id. Empty for unconditional data, whose labels are all 0.
        labels: (len,) class id of each image.
        channels: channels of the images, 1 or 3.
        image_size: side S of the images in pixels.
        is_encoded: whether items are what the transformer takes, which no VAE has yet to encode.
        targets: what is said of the features that are stored beside latents, for REPA; None if there are none.
    """

    name: str
    source: str
    classes: list[str]
    labels: np.ndarray
    channels: int
    image_size: int
    is_encoded: bool = False
    targets: dict | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def reference(self) -> str:
        """The source of the images that samples are compared with."""
        return self.source

    @property
    def num_classes(self) -> int:
        """Number of classes of a model for this data; data without classes counts as one class."""
        return max(1, len(self.classes))

    @property
    def notes(self) -> list[str]:
        """What a user should know before training: classes without images, and what a reader left out."""
        counts = np.bincount(self.labels, minlength=len(self.classes)) if self.classes else np.ones(1)
        if empty := [name for name, count in zip(self.classes, counts, strict=False) if not count]:
            shown = ", ".join(empty[:10]) + (", …" if len(empty) > 10 else "")
            return [f"{len(empty)} of {len(self.classes)} classes have no image, but will be sampled: {shown}"]
        return []

    def image(self, index: int) -> np.ndarray:
        """Return one image as uint8 (S, S, C).

        Raises:
            BrokenImageError: if the image cannot be read; the message names it.
        """
        raise NotImplementedError

    def picture(self, index: int) -> Image.Image:
        """Return one image as it was taken, upright but of any size and shape, grey or RGB.

        Raises:
            BrokenImageError: if the image cannot be read; the message names it.
        """
        image = self.image(index)
        return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)

    def origin(self, index: int) -> str:
        """Describe where an image comes from, so that a user can find it."""
        return f"image {index} of {self.source}"

    def fingerprint(self) -> str:
        """Return a SHA-256 that changes if images are added, removed or relabelled, or if the size of one changes."""
        return hash_of(self.image_size, self.classes, self.labels)

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        """Return the order of one epoch, a permutation of all indices."""
        return generator.permutation(len(self))

    def tensor(self, index: int, flip: bool = False) -> torch.Tensor:
        """Return one image as float32 (C, S, S) in [−1, 1], mirrored if `flip`."""
        image = self.image(index)[:, :: -1 if flip else 1]
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))  # (C, S, S); while they are bytes, this is cheap
        return torch.from_numpy(planes).float().div_(127.5).sub_(1)

    def training_tensors(
        self, index: int, flip: bool, posterior: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return what training needs of one image: `x`, and `posterior` if the VAE has yet to encode `x`.

        Args:
            index: index of the image.
            flip: whether to mirror the image.
            posterior: (c, s, s), noise for the VAE's posterior; None if there is no VAE.
        """
        x = self.tensor(index, flip)
        return {"x": x} if posterior is None else {"x": x, "posterior": posterior}

    def target_features(self, index: int, flip: bool) -> torch.Tensor:
        """The features (N, Z) float16 that are stored beside the latents of an image, mirrored if `flip`.

        Raises:
            ValueError: if none are stored.
        """
        raise ValueError(f"data={self.source!r} holds no features")

    def check_pixels(self, needed_by: str) -> None:
        """Raise ValueError if there are only precomputed latents; `needed_by` begins the message."""

    def check_output(self, field: str, folder: Path) -> None:
        """Raise ValueError if files that are written to this folder would become data; `field` names its option."""

    def verify(self) -> None:
        """Raise ValueError if files have changed since they were written. This may read all of them."""

    def check_training(self, vae: torch.nn.Module | None, horizontal_flip: bool) -> None:
        """Raise ValueError if this data does not fit the VAE (None for pixel space), or cannot be mirrored."""


class EncodedDataset(ImageDataset):
    """Images that are stored as encoded files (JPEG, PNG, …) inside a larger file."""

    channels = 3

    def encoded(self, index: int) -> bytes:
        """Return the bytes of one image file."""
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        return read_image(self.encoded(index), self.image_size, self.origin(index))

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(read_image(self.encoded(index), None, self.origin(index)))


def class_names(field: str, values: list, names: list[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Return class names by id, and the class id of each image.

    Args:
        field: beginning of the error messages.
        values: the label of each image: whole numbers (class ids) for all of them, or text (class names) for all.
        names: class names by id, if known.

    Raises:
        ValueError: if numbers and text are mixed, if an id is negative or has no name, or if more than half of the ids
            up to the largest one are unused.
    """
    numbers = [whole_number(value) for value in values]
    ids = [number for number in numbers if number is not None]
    if len(ids) < len(values):
        texts = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values]
        if not all(isinstance(text, str) for text in texts):
            odd = next(text for text, number in zip(texts, numbers, strict=True) if number is None)
            raise ValueError(
                f"{field}: labels must all be whole numbers or all be names, but one is {str(odd)[:40]!r}; change "
                "them, or add '?label=none'"
            )
        found = {name: label for label, name in enumerate(sorted(set(texts)))}
        return list(found), np.array([found[text] for text in texts], np.int64)
    if large := [value for value in ids if not -MAX_LABEL <= value <= MAX_LABEL]:
        raise ValueError(
            f"{field}: label {str(large[0])[:40]} is too large for a class id; number the classes from 0, name them, "
            "or add '?label=none'"
        )
    labels = np.array(ids, np.int64)
    if labels.min() < 0:
        raise ValueError(
            f"{field}: label {labels.min()} is below 0, which marks images without a class; add '?label=none' to train "
            "without classes"
        )
    present = len(np.unique(labels))
    if names is None and labels.max() >= 2 * present:
        raise ValueError(
            f"{field}: labels reach {labels.max()}, but there are only {present} classes; number them from 0, or give "
            "names"
        )
    if names is not None and labels.max() >= len(names):
        raise ValueError(
            f"{field}: labels reach {labels.max()}, but only {len(names)} classes have names; name all of them"
        )
    return list(names or map(str, range(labels.max() + 1))), labels


def whole_number(value: object) -> int | None:
    """Return a label as a whole number, also one that is written as text; None if it is none.

    Of numbers with hundreds of digits, which Python refuses to print, it returns `MAX_LABEL` + 1.
    """
    if isinstance(value, Integral):
        return int(value) if int(value).bit_length() < 256 else MAX_LABEL + 1
    if isinstance(value, (str, bytes)) and WHOLE_NUMBER.fullmatch(text := os.fsdecode(value)):
        return int(text) if len(text) < 80 else MAX_LABEL + 1
    return None


def check_image_size(source: str, image_size: int | None) -> int:
    """Return `image_size`; raise ValueError if it is None or not a whole number of at least 1."""
    if image_size is None:
        raise ValueError(f"image_size must be given for {source}, such as --image_size 64")
    check_count("image_size", image_size)
    return image_size


def parse_number(field: str, text: str) -> int:
    """Return the number that an option of a source gives; raise ValueError if it is not a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{field}={text!r} must be a whole number") from error


def hash_of(*parts) -> str:
    """Return the SHA-256 of arrays and of values that JSON can represent."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def cached_index(key: str, build: Callable[[], dict]) -> dict:
    """Return the index of a large file from the user's cache, or build it and cache it as JSON.

    Args:
        key: identifies the file and its state, so that a changed file is indexed again.
        build: makes the index. If the cache is not writable, it is called each time.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sit_atconv" / "index"
    file = cache / f"{hash_of(key)}.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))  # of any size: a shard may have millions of members
        if isinstance(index, dict):
            return index
    except (OSError, ValueError, RecursionError):
        pass  # it is made again
    index = build()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(index))
    except OSError:
        pass
    return index
