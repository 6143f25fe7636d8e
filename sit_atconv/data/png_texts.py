"""PNG files with large texts or colour profiles, which Pillow takes for an attack and refuses.

Texts and profiles play no part in how images are read here (but for the orientation in a small one), so large ones
are left out before Pillow sees the file.
"""

import io
import zlib
from typing import BinaryIO

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")


def without_large_texts(stream: BinaryIO) -> BinaryIO:
    """Return a stream of the same file, from its beginning, without the texts and profiles that Pillow refuses.

    It is the stream itself unless the file is a PNG that has such chunks.
    """
    is_png = stream.read(len(SIGNATURE)) == SIGNATURE
    large = _large_texts(stream) if is_png else []
    stream.seek(0)
    if not large:
        return stream
    parts = []
    for start, end in large:
        parts.append(stream.read(start - stream.tell()))
        stream.seek(end)
    return io.BytesIO(b"".join([*parts, stream.read()]))


def _large_texts(stream: BinaryIO) -> list[tuple[int, int]]:
    """Where the chunks to leave out begin and end. The stream stands behind the signature."""
    large, total = [], 0
    start = len(SIGNATURE)
    while len(header := stream.read(8)) == 8 and header[4:] != b"IEND":
        length = int.from_bytes(header[:4], "big")
        end = start + 8 + length + 4  # with the checksum
        if header[4:] in TEXTS:
            size = _text_size(header[4:], stream.read(length))
            total += size
            if size >= PngImagePlugin.MAX_TEXT_CHUNK or total > PngImagePlugin.MAX_TEXT_MEMORY:
                large.append((start, end))
                total -= size
        stream.seek(end)
        start = end
    return large


def _text_size(kind: bytes, body: bytes) -> int:
    """The bytes of a text or profile; of a compressed one, no more than Pillow allows are counted."""
    _, _, text = body.partition(b"\0")  # behind the keyword
    if kind == b"iTXt":
        compressed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        compressed, text = kind != b"tEXt", text if kind == b"tEXt" else text[1:]
    if not compressed:
        return len(text)
    try:
        return len(zlib.decompressobj().decompress(text, PngImagePlugin.MAX_TEXT_CHUNK))
    except zlib.error:
        return len(body)  # Pillow ignores it
