"""From any image file to upright 8-bit RGB, the same way everywhere: training, encoding, evaluation.

H rows, W columns; images are uint8 (H, W, 3). What happens to each kind of file is written down in docs/data.md.
"""

import functools
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

IMAGE_EXTENSIONS = (*IMG_EXTENSIONS, ".apng", ".avif", ".gif", ".j2k", ".jfif", ".jp2", ".tga")
# What may be opened, whatever a file is called: Pillow would start Ghostscript for an EPS.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
BACKGROUND = (255, 255, 255)  # behind transparent pixels


class BrokenImageError(ValueError):
    """An image that cannot be read."""


def read_image(file: str | Path | bytes, image_size: int | None = None, name: str | None = None) -> np.ndarray:
    """Read an image upright, as RGB; its centre square resized to `image_size` where that is given: (H, W, 3) uint8.

    Of an animation, the first frame is taken.

    Args:
        file: a path, or the encoded bytes.
        image_size: side of the result; None keeps the size.
        name: for messages; the path where None.

    Raises:
        BrokenImageError: naming the file, where it is truncated, too large to be an honest picture (Pillow's limit of
            179 million pixels), of an unknown format, or has values without a known range.
    """
    try:
        with warnings.catch_warnings():
            # Between 89 and 179 million pixels lie real photographs; beyond, Pillow refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats()) as opened:
                if opened.format == "JPEG" and opened.mode == "CMYK" and "adobe" not in opened.info:
                    # Pillow takes all four-channel JPEGs for inverted ones; only those with Adobe's marker are.
                    image = ImageChops.invert(opened)
                    image.info = opened.info
                else:
                    image = opened
                image = to_rgb(ImageOps.exif_transpose(image))
        if image_size is not None:
            image = centre_square(image, image_size)
    except Exception as error:  # Pillow's plugins raise all sorts
        what = name if name is not None or isinstance(file, bytes) else file
        raise BrokenImageError(f"{what} cannot be read as an image: {str(error) or type(error).__name__}") from error
    return np.array(image)


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF is missing from some builds of Pillow


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB: 16 bits scaled to 8, transparency laid on white.

    Raises:
        ValueError: for 32-bit or floating-point values outside of the ranges that are known.
    """
    if image.mode.startswith("I"):
        return _grey(image, np.asarray(image), 65535)
    if image.mode == "F":
        values = np.asarray(image)
        return _grey(image, values, 255 if values.max() > 1 else 1)
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return ImageCms.applyTransform(image, transform)
    if image.has_transparency_data or image.mode == "P":
        if image.mode == "RGB" and max(image.info["transparency"]) > 255:
            # Of 16-bit RGB, Pillow keeps the upper 8 bits of the pixels and all 16 of the transparent colour.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, values: np.ndarray, white: int) -> Image.Image:
    """Values from 0 (black) to `white` as RGB, scaled and rounded to 8 bits."""
    if not (np.isfinite(values).all() and 0 <= values.min() and values.max() <= white):
        raise ValueError(f"mode {image.mode} holds values outside of 0…{white}, whose range is not known")
    grey = np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    if (key := image.info.get("transparency")) is not None:
        grey[values == key] = BACKGROUND[0]
    return Image.fromarray(grey).convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and crop the centre, as ADM does (arXiv 2105.05233, its image loader).

    Halving by box averages first, then bicubic: published FIDs of ADM, DiT and SiT compare with images made so.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
