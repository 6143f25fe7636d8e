"""Whether an LMDB file is whole.

LMDB maps its file into memory. To read a page behind the end of a truncated file ends the process (SIGBUS), so the
file is checked before LMDB sees it. The format is that of LMDB 0.9 on 64-bit machines, in the machine's byte order.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from ..utils.files import open_regular

MAGIC = 0xBEEFC0DE
HEADER = 16  # bytes of a page before its content
BRANCH, LEAF = 0x01, 0x02  # flags of pages
BIG = 0x01  # flag of a node whose value has pages of its own


def check_whole(file: Path, field: str) -> None:
    """Check that all pages that can be read lie in the file.

    Args:
        file: the file with the data.
        field: beginning of the message.

    Raises:
        ValueError: if the file is truncated, or not a regular file. Whether it is an LMDB at all is left to LMDB.
        OSError: if the file cannot be read.
    """
    with open_regular(file) as opened:
        size = opened.seek(0, 2)
        metas = _read_metas(opened, size)
        if not metas:
            return
        page_size, last_page, root = max(metas)[1:]
        if size < 2 * page_size:
            needed = 2 * page_size
        elif size >= (last_page + 1) * page_size:
            return
        else:  # Pages that were freed again before they were written may be missing at the end.
            needed = _end_of_tree(opened, size, page_size, root)
    if size < needed:
        raise ValueError(f"{field} is truncated: it has {size} bytes, but refers to {needed}; copy it again")


def _read_metas(opened: BinaryIO, size: int) -> list[tuple[int, int, int, int]]:
    """Return (transaction, page size, last page, root page) of the two pages that describe the file, if they are any.

    The one of the newer transaction counts.
    """
    metas: list[tuple[int, int, int, int]] = []
    start = 0
    while len(metas) < 2:
        opened.seek(start)
        page = opened.read(HEADER + 136)
        if len(page) < HEADER + 136 or struct.unpack_from("=I", page, HEADER)[0] != MAGIC:
            break
        page_size = struct.unpack_from("=I", page, HEADER + 24)[0]
        (root,) = struct.unpack_from("=Q", page, HEADER + 24 + 48 + 40)
        last_page, transaction = struct.unpack_from("=QQ", page, HEADER + 24 + 96)
        if not 256 <= page_size <= 65536:
            break
        metas.append((transaction, page_size, last_page, root))
        start = metas[0][1]
    return metas


def _end_of_tree(opened: BinaryIO, size: int, page_size: int, root: int) -> int:
    """Return where the last page ends that is reachable from the root; one behind the end of the file suffices."""
    end, waiting, seen = 0, [root] if root != 2**64 - 1 else [], set()
    while waiting:
        number = waiting.pop()
        end = max(end, (number + 1) * page_size)
        if end > size:
            return end
        if number in seen:
            continue
        seen.add(number)
        opened.seek(number * page_size)
        page = opened.read(page_size)
        flags, lower = struct.unpack_from("=HH", page, 10)
        for place in struct.unpack_from(f"={max(0, min(lower, page_size) - HEADER) // 2}H", page, HEADER):
            if place + 8 > page_size:
                continue  # damaged, which LMDB notices
            low, high, node_flags, key_size = struct.unpack_from("=4H", page, place)
            if flags & BRANCH:
                waiting.append(low | high << 16 | node_flags << 32)
            elif flags & LEAF and node_flags & BIG and place + 16 + key_size <= page_size:
                (first,) = struct.unpack_from("=Q", page, place + 8 + key_size)
                pages = (HEADER - 1 + (low | high << 16)) // page_size + 1
                end = max(end, (first + pages) * page_size)
    return end
