"""From the pixels of any image to 8-bit grey or RGB, and to the centre square of a data set.

What is needed beside the image and the result is small, whatever the mode and the shape of the image.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageChops, ImageCms

BACKGROUND = (255, 255, 255)  # behind transparent pixels
STRIP = 2**20  # pixels that are converted at a time
LONGEST = 16  # times its shorter side: longer images are not enlarged as a whole

Converter = Callable[[Image.Image], Image.Image]


def to_8_bits(image: Image.Image, prepare: Converter | None = None) -> Image.Image:
    """Convert an image of any mode to grey ("L") or RGB: 16 bits are scaled to 8, transparent pixels laid on white.

    Args:
        image: the image. One that is 8-bit grey or RGB already is returned as it is.
        prepare: an operation on single pixels that comes first.

    Raises:
        ValueError: for 32-bit integers or floating-point values of an unknown range.
    """
    image.load()
    if image.mode in ("L", "RGB") and not image.has_transparency_data and prepare is None:
        return image
    convert = _converter(image)
    result = None
    for top, strip in _strips(image):
        converted = convert(strip if prepare is None else prepare(strip))
        if converted.size == image.size:
            return converted
        if result is None:
            result = Image.new(converted.mode, image.size)
        result.paste(converted, (0, top))
    assert result is not None
    return result


def inverted_cmyk(image: Image.Image) -> Image.Image:
    """The opposite of each ink."""
    return ImageChops.invert(image)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of whole rows, each with its first row; a small image is one strip."""
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _converter(image: Image.Image) -> Converter:
    """What converts a strip of this image."""
    if image.mode.startswith("I;16"):
        table = np.round(np.arange(65536) * (255 / 65535)).astype(np.uint8)
        return lambda strip: _grey(strip, lambda values: table[values])
    if image.mode in ("I", "F"):
        white = _white(image)
        return lambda strip: _grey(strip, lambda values: np.round(values.astype(np.float64) * (255 / white)))
    if image.mode == "LAB":
        return _lab_to_rgb()
    if image.has_transparency_data or image.mode == "P":
        return _on_background
    return lambda strip: strip.convert("L" if strip.mode == "1" else "RGB")


def _white(image: Image.Image) -> int:
    """The value that stands for white, of 0 for black; 32-bit values do not say, so it follows from the largest one."""
    lowest, highest, finite = np.inf, -np.inf, True
    for _, strip in _strips(image):
        part = np.asarray(strip)
        finite = finite and bool(np.isfinite(part).all())
        lowest, highest = min(lowest, part.min()), max(highest, part.max())
    white = 65535 if image.mode == "I" else 255 if highest > 1 else 1
    if not (finite and 0 <= lowest and highest <= white):
        raise ValueError(f"mode {image.mode} holds values outside of 0…{white}; their range is not known")
    return white


def _grey(strip: Image.Image, scale: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    values = np.asarray(strip)
    grey = scale(values).astype(np.uint8)
    if (key := strip.info.get("transparency")) is not None:
        grey[values == key] = BACKGROUND[0]
    return Image.fromarray(grey)


def _lab_to_rgb() -> Converter:
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

    def convert(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip, transform)
        assert converted is not None  # it is None only for inPlace=True
        return converted

    return convert


def _on_background(strip: Image.Image) -> Image.Image:
    if strip.mode == "RGB" and max(strip.info["transparency"]) > 255:
        # For 16-bit RGB, Pillow keeps the upper 8 bits of the pixels but all 16 of the transparent colour.
        strip = strip.copy()
        strip.info["transparency"] = tuple(value >> 8 for value in strip.info["transparency"])
    strip = strip.convert("RGBA")
    background = Image.new("RGBA", strip.size, BACKGROUND)
    return Image.alpha_composite(background, strip).convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and crop the centre, as the image loader of ADM does (arXiv 2105.05233).

    The image is halved by box averages while it is twice as large, then resized bicubically. The published FIDs of ADM,
    DiT and SiT are based on images of this kind. Of a long strip, only the square is enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if scale > 1 and max(image.size) > LONGEST * min(image.size):
        horizontal, vertical = image.width / width, image.height / height
        right, bottom = min((left + size) * horizontal, image.width), min((top + size) * vertical, image.height)
        box = (left * horizontal, top * vertical, right, bottom)
        return image.resize((size, size), Image.Resampling.BICUBIC, box)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
