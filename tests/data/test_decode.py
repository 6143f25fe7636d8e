"""Every kind of image file becomes the upright 8-bit RGB picture that its author saw."""

import io
import multiprocessing
import os
import resource
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from sit_atconv.data import BrokenImageError, pixels, read_image
from sit_atconv.data.pixels import centre_square
from sit_atconv.evaluation.image_sets import FolderImages


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(color_type: int, bit_depth: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples that Pillow cannot write: rows (H, W·channels), big-endian where they have 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    height, width = rows.shape[0], rows.shape[1] // channels
    raw = b"".join(b"\0" + row.astype(f">u{bit_depth // 8}").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*entry) for entry in chunks), chunk(b"IDAT", zlib.compress(raw))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


GREY_16 = np.array([[0, 257, 32896, 65535]], np.uint16)
GREY_8 = np.array([[0, 1, 128, 255]], np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        png(0, 16, GREY_16),
        encoded(Image.fromarray(GREY_16), "TIFF"),
        encoded(Image.fromarray(GREY_16.astype(np.int32)), "TIFF"),
        b"P5 4 1 65535\n" + GREY_16.astype(">u2").tobytes(),
        b"MM\0*\0\0\0\x10"
        + GREY_16.astype(">u2").tobytes()  # a big-endian TIFF
        + struct.pack(">H", 8)
        + b"".join(
            struct.pack(">HHI", tag, 3, 1) + struct.pack(">HH", value, 0)
            for tag, value in ((256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (278, 1), (279, 8))
        )
        + bytes(4),
    ],
    ids=["png", "tiff", "tiff of 32 bits", "pgm", "big-endian tiff"],
)
def test_16_bit_grey_is_scaled_not_clipped(data):
    np.testing.assert_array_equal(read_image(data), np.repeat(GREY_8[..., None], 3, axis=2))


def test_16_bit_colour():
    rows = np.array([[65535, 32896, 0, 257, 514, 65535]], np.uint16)
    assert read_image(png(2, 16, rows)).tolist() == [[[255, 128, 0], [1, 2, 255]]]
    # transparent colours are compared with all their bits
    transparent = (b"tRNS", np.array([257, 514, 65535], ">u2").tobytes())
    assert read_image(png(2, 16, rows, transparent)).tolist() == [[[255, 128, 0], [255, 255, 255]]]
    grey = png(0, 16, GREY_16, (b"tRNS", np.array([257], ">u2").tobytes()))
    assert read_image(grey)[0, :, 0].tolist() == [0, 255, 128, 255]
    alpha = png(6, 16, np.array([[65535, 0, 0, 32896]], np.uint16))
    assert read_image(alpha).tolist() == [[[255, 127, 127]]]


def test_floats_of_known_range():
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert read_image(encoded(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert read_image(encoded(Image.fromarray(unit * 255), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    for values in (unit * 1000, unit - 0.5, unit * np.nan):
        with pytest.raises(BrokenImageError, match="range is not known"):
            read_image(encoded(Image.fromarray(values), "TIFF"))


def test_integers_of_unknown_range():
    with pytest.raises(BrokenImageError, match="0…65535"):
        read_image(encoded(Image.fromarray(np.array([[70000]], np.int32)), "TIFF"))


RED_HALF = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
ON_WHITE = [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]


def test_alpha_is_laid_on_white():
    assert read_image(encoded(Image.fromarray(RED_HALF))).tolist() == ON_WHITE
    assert read_image(encoded(Image.fromarray(RED_HALF), "WEBP", lossless=True, exact=True)).tolist() == ON_WHITE
    grey = Image.fromarray(RED_HALF[..., [0, 3]], "LA")
    assert read_image(encoded(grey))[0, :, 0].tolist() == [255, 255, 127]


def test_transparent_colours_and_palettes():
    grey = Image.fromarray(np.array([[0, 50, 200]], np.uint8))
    assert read_image(encoded(grey, transparency=50))[0, :, 0].tolist() == [0, 255, 200]
    colour = Image.fromarray(RED_HALF[..., :3])
    assert read_image(encoded(colour, transparency=(255, 0, 0)))[0, :, 1].tolist() == [255, 255, 0]

    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    opaque = [[[10, 20, 30], [200, 100, 0], [0, 0, 255]]]
    assert read_image(encoded(palette)).tolist() == opaque
    assert read_image(encoded(palette, "GIF")).tolist() == opaque
    assert read_image(encoded(palette, transparency=1)).tolist() == [[opaque[0][0], [255] * 3, opaque[0][2]]]
    assert read_image(encoded(palette, "GIF", transparency=1)).tolist() == [[opaque[0][0], [255] * 3, opaque[0][2]]]
    alphas = read_image(encoded(palette, transparency=bytes([255, 0, 128])))
    assert alphas.tolist() == [[[10, 20, 30], [255] * 3, [127, 127, 255]]]


def test_one_bit_and_grey():
    bits = Image.fromarray(np.array([[True, False]]))
    assert read_image(encoded(bits)).tolist() == [[[255] * 3, [0] * 3]]
    assert read_image(encoded(Image.fromarray(GREY_8)))[0, :, 2].tolist() == GREY_8[0].tolist()


def test_cmyk():
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    for data in (encoded(ink, "TIFF"), encoded(ink, "JPEG", quality=100)):
        assert np.abs(read_image(data).astype(int) - [255, 0, 0]).max() <= 2
    # Without Adobe's marker (0xFFEE), the numbers are not inverted: those of red on paper's stand for its opposite.
    jpeg = encoded(ink, "JPEG", quality=100)
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    plain = jpeg[:start] + jpeg[start + 2 + length :]
    assert "adobe" not in Image.open(io.BytesIO(plain)).info
    assert read_image(plain).max() <= 2  # (255, 0, 0, 255): full black
    paper = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 255)), "JPEG", quality=100)
    start = paper.index(b"\xff\xee")
    assert np.abs(read_image(paper[:start] + paper[start + 2 + length :]).astype(int) - [255, 0, 0]).max() <= 2


def test_lab():
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    assert np.abs(read_image(encoded(lab, "TIFF")).astype(int) - 255).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "I;16", "P"])
def test_every_orientation_is_turned_upright(orientation, mode):
    upright = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    stored = {  # what a camera held that way writes
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    stored = np.ascontiguousarray(stored)
    image = Image.fromarray(stored.astype(np.uint16) * 257 if mode == "I;16" else stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image.convert(mode), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(data)[..., 1], upright)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
    assert read_image(data)[0, 0].tolist() == [255, 0, 0]


def test_what_cannot_be_read_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    jpeg = encoded(Image.fromarray(noise), "JPEG")
    for name, data in (
        ("text.png", b"not a picture"),
        ("empty.jpg", b""),
        ("cut.jpg", jpeg[: len(jpeg) // 2]),
        ("cut.png", encoded(Image.fromarray(noise))[:5000]),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),  # would start Ghostscript
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BrokenImageError, match=f"{name} cannot be read"):
            read_image(tmp_path / name)
    with pytest.raises(BrokenImageError, match="row 7 cannot be read"):
        read_image(b"", name="row 7")


def test_decompression_bombs_are_refused():
    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    small = png(0, 16, GREY_16)
    bomb = small[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + small[33:]
    with pytest.raises(BrokenImageError, match="decompression bomb"):
        read_image(bomb)


def test_centre_square_is_adms():
    """Halved by averages of 2 × 2 while it is twice as large, then bicubic; wide and tall ones are cropped."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for image in (noise, noise.transpose(1, 0, 2)):
        cropped = np.asarray(centre_square(Image.fromarray(image), 16))
        means = image.reshape(image.shape[0] // 4, 4, image.shape[1] // 4, 4, 3).mean(axis=(1, 3))
        top, left = (means.shape[0] - 16) // 2, (means.shape[1] - 16) // 2
        assert (
            np.abs(cropped - means[top : top + 16, left : left + 16]).max() <= 2
        )  # rounded at each halving, in both directions
    np.testing.assert_array_equal(centre_square(Image.fromarray(noise), 64), noise[:, 16:80])
    assert centre_square(Image.fromarray(noise[:5, :7]), 9).size == (9, 9)
    assert centre_square(Image.fromarray(noise), 37).size == (37, 37)


def adm_square(image: Image.Image, size: int) -> Image.Image:
    """The published code's way, whatever memory it takes."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def test_ordinary_images_are_bit_identical_to_adms():
    rng = np.random.default_rng(0)
    for _ in range(200):
        width, height, size = rng.integers(1, 100, 3)
        if max(width, height) > 16 * min(width, height):
            continue
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        np.testing.assert_array_equal(centre_square(image, int(size)), adm_square(image, int(size)))


@pytest.mark.parametrize("shape", [(700, 3), (5, 1001), (1, 320), (901, 7)])
@pytest.mark.parametrize("size", [8, 37, 64])
def test_long_strips_are_those_of_adm_too(shape, size):
    """Smooth ones, so that the order in which sides are resized does not matter: each value may differ in rounding."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = Image.fromarray((127 + 120 * np.sin(x / 5) * np.cos(y / 7)).astype(np.uint8))
    difference = np.asarray(centre_square(image, size)).astype(int) - np.asarray(adm_square(image, size))
    assert np.abs(difference).max() <= 2


def peak_megabytes(function) -> float:
    """The memory that Pillow and NumPy take on top while a function runs, in a process of its own."""
    parent, child = multiprocessing.Pipe(duplex=False)

    def measure() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        child.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    assert parent.poll(60)
    megabytes = parent.recv()
    process.join()
    return megabytes


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are counted on Linux")
@pytest.mark.parametrize("shape", [(1, 60000), (8000, 1), (20000, 1), (2, 100_001)])
def test_long_strips_take_little_memory(shape):
    data = encoded(Image.new("L", shape, 77))
    assert peak_megabytes(lambda: read_image(data, 256)) < 30
    np.testing.assert_array_equal(read_image(data, 64), np.full((64, 64, 3), 77))


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are counted on Linux")
@pytest.mark.parametrize(("mode", "dtype", "times"), [(0, 2, 4), (6, 1, 11), (2, 1, 6)])
def test_large_images_take_a_few_bytes_a_pixel(mode, dtype, times):
    channels = {0: 1, 2: 3, 6: 4}[mode]
    data = png(mode, 8 * dtype, np.zeros((4000, 4000 * channels), f"u{dtype}"))
    assert peak_megabytes(lambda: read_image(data, 64)) < 16 * times + 40


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are counted on Linux")
@pytest.mark.parametrize("mode", [4, 6, 2])
def test_whole_images_take_no_more_than_eleven_bytes_a_pixel(mode, tmp_path):
    """Those that are not cropped, in training's way of reading and in clean-fid's."""
    channels = {2: 3, 4: 2, 6: 4}[mode]
    (tmp_path / "a.png").write_bytes(png(mode, 8, np.zeros((4000, 4000 * channels), np.uint8)))
    assert peak_megabytes(lambda: read_image(tmp_path / "a.png")) < 16 * 11 + 20
    assert peak_megabytes(lambda: FolderImages(tmp_path).image(0)) < 16 * 11 + 20


@pytest.mark.parametrize("strip", [1, 37, 10**6])
def test_strips_change_nothing(strip, monkeypatch):
    rng = np.random.default_rng(0)
    alpha = encoded(Image.fromarray(rng.integers(0, 256, (23, 17, 4), dtype=np.uint8)))
    deep = encoded(Image.fromarray(rng.integers(0, 65536, (23, 17), dtype=np.uint16)))
    lab = encoded(Image.fromarray(rng.integers(0, 256, (23, 17, 3), dtype=np.uint8), "LAB"), "TIFF")
    floats = encoded(Image.fromarray(rng.random((23, 17), dtype=np.float32) * 200), "TIFF")
    files = (alpha, deep, lab, floats, encoded(Image.open(io.BytesIO(alpha)).convert("RGB").quantize(9)))
    expected = [read_image(file) for file in files]
    monkeypatch.setattr(pixels, "STRIP", strip)
    for file, whole in zip(files, expected, strict=True):
        np.testing.assert_array_equal(read_image(file), whole)


def compressed_text(kind: bytes, size: int) -> tuple[bytes, bytes]:
    """A chunk of a PNG with a text or profile of so many bytes."""
    text = zlib.compress(bytes(size))
    return {
        b"iCCP": (kind, b"profile\0\0" + text),
        b"zTXt": (kind, b"Comment\0\0" + text),
        b"iTXt": (kind, b"Comment\0\1\0en\0Kommentar\0" + text),
        b"tEXt": (kind, b"Comment\0" + b"x" * size),
    }[kind]


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt"])
@pytest.mark.parametrize("size", [100, 2**20, 3_000_000, 70_000_000])
def test_large_texts_and_profiles_of_pngs_are_skipped(kind, size, tmp_path):
    if kind == b"tEXt" and size > 2**24:
        size = 2**24
    orientation = (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0")  # half a turn
    data = png(0, 8, GREY_8, compressed_text(kind, size), orientation)
    assert read_image(data)[0, :, 0].tolist() == GREY_8[0, ::-1].tolist()
    (tmp_path / "a.png").write_bytes(data)
    assert FolderImages(tmp_path, uniform=True).image(0)[0, :, 0].tolist() == GREY_8[0].tolist()  # as clean-fid does


def test_many_texts_of_pngs_are_skipped():
    assert read_image(png(0, 8, GREY_8, *[compressed_text(b"zTXt", 10**6)] * 80)).shape == (1, 4, 3)


def test_texts_that_are_read_stay():
    """The orientation may be in a text."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    data = png(0, 8, GREY_8, compressed_text(b"zTXt", 2**21), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    assert read_image(data)[0, :, 0].tolist() == GREY_8[0, ::-1].tolist()


def test_truncated_pngs_with_large_texts_stay_broken():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    data = png(0, 8, noise, compressed_text(b"zTXt", 2**21))
    for length in (20, 60, len(data) // 2, len(data) - 500):
        with pytest.raises(BrokenImageError):
            read_image(data[:length], name="x")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_postscript_never_reaches_ghostscript(name, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(BrokenImageError, match=f"{name} cannot be read"):
        read_image(tmp_path / name)
    with pytest.raises(BrokenImageError, match=f"{name} cannot be read.*repair or remove it"):
        FolderImages(tmp_path).image(0)
    with pytest.raises(BrokenImageError, match=f"{name} cannot be read.*repair or remove it"):
        FolderImages(tmp_path, uniform=True)


def test_pipes_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for file in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(BrokenImageError, match="cannot be read"):
            read_image(file)
