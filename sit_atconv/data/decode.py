"""Reads any image file as upright 8-bit RGB, in the same way for training, encoding and evaluation.

H rows, W columns; images are uint8 (H, W, 3). docs/data.md lists what is done with each kind of file.
"""

import functools
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

IMAGE_EXTENSIONS = (*IMG_EXTENSIONS, ".apng", ".avif", ".gif", ".j2k", ".jfif", ".jp2", ".tga")
# Formats that are opened, whatever the name of the file. Pillow would start Ghostscript for an EPS file.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
BACKGROUND = (255, 255, 255)  # behind transparent pixels


class BrokenImageError(ValueError):
    """Raised for an image that cannot be read; the message names it."""


def read_image(file: str | Path | bytes, image_size: int | None = None, name: str | None = None) -> np.ndarray:
    """Read an image as upright RGB: uint8 (H, W, 3). Of an animation, read the first frame.

    Args:
        file: path of the file, or its bytes.
        image_size: side of the centre square that is cut out and resized. If None, the whole image is returned.
        name: name of the image in error messages. Defaults to the path.

    Raises:
        BrokenImageError: if the file is truncated, has more than 179 million pixels (Pillow's limit against
            decompression bombs), an unknown format, or values of an unknown range.
    """
    try:
        with warnings.catch_warnings():
            # Real photographs have up to 179 million pixels. Pillow warns from half of that on, and refuses more.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats()) as opened:
                if opened.format == "JPEG" and opened.mode == "CMYK" and "adobe" not in opened.info:
                    # Pillow treats all four-channel JPEGs as inverted, but only those with Adobe's marker are.
                    image = ImageChops.invert(opened)
                    image.info = opened.info
                else:
                    image = opened
                image = to_rgb(upright(image))
        if image_size is not None:
            image = centre_square(image, image_size)
    except Exception as error:  # Pillow's plugins raise all kinds of errors
        what = name if name is not None or isinstance(file, bytes) else file
        raise BrokenImageError(f"{what} cannot be read as an image: {str(error) or type(error).__name__}") from error
    return np.array(image)


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF is missing from some builds of Pillow


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says."""
    turned = ImageOps.exif_transpose(image)
    assert turned is not None  # it is None only for in_place=True
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: 16 bits are scaled to 8, and transparent pixels are laid on white.

    Raises:
        ValueError: for 32-bit integers or floating-point values of an unknown range.
    """
    if image.mode.startswith("I"):
        return _grey(image, np.asarray(image), 65535)
    if image.mode == "F":
        values = np.asarray(image)
        return _grey(image, values, 255 if values.max() > 1 else 1)
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # it is None only for inPlace=True
        return converted
    if image.has_transparency_data or image.mode == "P":
        if image.mode == "RGB" and max(image.info["transparency"]) > 255:
            # For 16-bit RGB, Pillow keeps the upper 8 bits of the pixels but all 16 of the transparent colour.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, values: np.ndarray, white: int) -> Image.Image:
    """Scale values from 0 (black) to `white` to 8 bits, and return them as RGB."""
    if not (np.isfinite(values).all() and 0 <= values.min() and values.max() <= white):
        raise ValueError(f"mode {image.mode} holds values outside of 0…{white}; their range is not known")
    grey = np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    if (key := image.info.get("transparency")) is not None:
        grey[values == key] = BACKGROUND[0]
    return Image.fromarray(grey).convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and crop the centre, as the image loader of ADM does (arXiv 2105.05233).

    The image is halved by box averages while it is twice as large, then resized bicubically. The published FIDs of ADM,
    DiT and SiT are based on images of this kind.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
