"""Reads any image file as upright 8-bit RGB, in the same way for training, encoding and evaluation.

H rows, W columns; images are uint8 (H, W, 3). docs/data.md lists what is done with each kind of file.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..utils.files import open_regular
from ..utils.text import one_line
from .pixels import centre_square, inverted_cmyk, to_8_bits
from .png_texts import without_large_texts

# The formats that are opened, whatever the name of the file, and the endings by which files of them are found. Pillow
# would start Ghostscript for an EPS file.
FORMATS = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
Image.init()  # registers Pillow's formats; AVIF is missing from some builds
READABLE = [name for name in FORMATS if name in Image.OPEN]
IMAGE_EXTENSIONS = tuple(ending for name in READABLE for ending in FORMATS[name])

# Larger images are not decoded: a file of some kilobytes can hold any number of equal pixels. Real photographs stay
# below. It is also Pillow's own limit, so to raise it, raise both: this and twice PIL.Image.MAX_IMAGE_PIXELS.
MAX_PIXELS = 178_956_970


class BrokenImageError(ValueError):
    """Raised for an image that cannot be read; the message names it."""

    concerns_one_process = True  # the others may not have met the image


@contextlib.contextmanager
def open_image(file: str | Path | bytes) -> Iterator[Image.Image]:
    """Open an image of one of `FORMATS`, and check its size. Pixels are not decoded yet.

    All images that a user gives are opened by this function, in training and in evaluation.

    Args:
        file: path of the file, or its bytes.

    Raises:
        Exception: of any type, from Pillow, if the file is damaged or has another format.
        ValueError: if it is not a regular file, or has more than `MAX_PIXELS` pixels.
    """
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = io.BytesIO(file) if isinstance(file, bytes) else stack.enter_context(open_regular(file))
        stack.enter_context(warnings.catch_warnings())
        # Pillow warns of photographs from half its limit on.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = stack.enter_context(Image.open(without_large_texts(stream), formats=READABLE))
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error} Make the image smaller") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"it has none of the formats that are read: {', '.join(READABLE)}") from error
        if (count := image.width * image.height) > MAX_PIXELS:
            raise ValueError(
                f"{image.width}×{image.height} are {count} pixels, more than the {MAX_PIXELS} that are read, and may "
                "be a decompression bomb. Make the image smaller"
            )
        yield image


def read_image(file: str | Path | bytes, image_size: int | None = None, name: str | None = None) -> np.ndarray:
    """Read an image as upright RGB: uint8 (H, W, 3). Of an animation, read the first frame.

    Args:
        file: path of the file, or its bytes.
        image_size: side of the centre square that is cut out and resized. If None, the whole image is returned.
        name: name of the image in error messages. Defaults to the path.

    Raises:
        BrokenImageError: if the file is truncated, is not a regular file, has more than `MAX_PIXELS` pixels, an unknown
            format, or values of an unknown range.
    """
    try:
        with open_image(file) as opened:
            # Pillow treats all four-channel JPEGs as inverted, but only those with Adobe's marker are.
            inverted = opened.format == "JPEG" and opened.mode == "CMYK" and "adobe" not in opened.info
            ImageOps.exif_transpose(opened, in_place=True)  # upright
            image = to_8_bits(opened, inverted_cmyk if inverted else None)
            if image_size is not None:
                image = centre_square(image, image_size)
            image = image.convert("RGB")
        opened.close()  # its pixels; an array needs as much again
        return np.array(image)
    except Exception as error:  # Pillow's plugins raise all kinds of errors
        what = name if name is not None or isinstance(file, bytes) else file
        reason = str(error) or type(error).__name__
        raise BrokenImageError(one_line(f"{what} cannot be read as an image: {reason}")) from error
