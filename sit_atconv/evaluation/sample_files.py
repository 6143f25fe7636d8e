"""The image files in a folder of samples: which are missing or broken, and how they are written and read.

Images are uint8 (H, W, C).
"""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import read_image
from ..utils.files import open_regular, staged

PNG_END = b"IEND\xaeB`\x82"  # the last chunk with its checksum, which Pillow does not verify


def missing_batches(folder: Path, num_samples: int, batch_size: int) -> list[int]:
    """The first index of each batch of which an image is missing."""
    there = {file.name for file in folder.glob("*.png")}
    return [
        start
        for start in range(0, num_samples, batch_size)
        if any(image_file(folder, i).name not in there for i in range(start, min(start + batch_size, num_samples)))
    ]


def remove_broken(folder: Path, indices: Iterable[int]) -> None:
    """Remove images that a crash or a full disk has cut short, so that they count as missing."""
    files = [file for file in (image_file(folder, i) for i in indices) if file.exists()]
    with ThreadPoolExecutor() as pool:
        for file, whole in zip(files, pool.map(is_whole, files), strict=True):
            if not whole:
                file.unlink()


def is_whole(file: Path) -> bool:
    """Whether a PNG file is complete and its checksums are right; its pixels are not decoded."""
    try:
        with open_regular(file) as opened:
            content = opened.read()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
    except Exception:  # Pillow's plugins raise all sorts
        return False
    return content.endswith(PNG_END)


def image_file(folder: Path, index: int) -> Path:
    """The file of image `index`."""
    return folder / f"{index:06d}.png"


def save_image(image: np.ndarray, file: Path) -> None:
    """Write a PNG file that is complete as soon as it exists."""
    with staged(file, durable=False) as part, part.open("wb") as opened:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(opened, "png")


def read_images(folder: Path, num_samples: int) -> Iterator[np.ndarray]:
    """The images of the folder one by one, (H, W, 3) uint8."""
    for i in range(num_samples):
        yield read_image(image_file(folder, i))
