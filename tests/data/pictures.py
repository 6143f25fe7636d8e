"""Small one-coloured pictures, and files that hold them."""

import io
import tarfile

from PIL import Image

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (250, 250, 0), (0, 250, 250)]


def png(colour, size=4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def colours_of(dataset) -> list[tuple]:
    return [tuple(dataset.image(i)[0, 0].tolist()) for i in range(len(dataset))]


def write_tar(file, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
