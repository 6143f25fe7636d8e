"""Whether an LMDB file is whole: all of its pages are where others say, and hold what LMDB takes for granted.

LMDB maps its file into memory and follows the numbers in its pages unchecked: what leads out of the file ends the
process (SIGBUS, SIGSEGV), and so do its own assertions (SIGABRT). The tree of pages is therefore walked before LMDB
sees the file. Values with pages of their own, as those of large images, are not read. The format is that of LMDB 0.9 on
64-bit machines, in the machine's byte order.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..utils.files import open_regular

MAGIC = 0xBEEFC0DE
NO_PAGE = 2**64 - 1
HEADER = 16  # bytes of a page before its content
NODE = 8  # bytes of a node before its key
PAGE_SIZES = [2**power for power in range(8, 16)]
BRANCH, LEAF = 0x01, 0x02  # flags of pages
KINDS = 0x6F  # all flags that say what a page is; the others are of unfinished writes
BIG = 0x01  # flag of a node whose value has pages of its own
UNKNOWN_NODES = 0xFFFC  # flags of nodes that a database of single values does not have
UNKNOWN_DATABASES = 0x74  # flags of databases with several values to a key
MAX_LEVELS = 32  # of a tree, in LMDB itself


@dataclass(frozen=True)
class Meta:
    """What one of the two pages at the beginning says; that of the newer transaction counts."""

    transaction: int
    page_size: int
    last_page: int
    root: int
    flags: int


class DamageError(ValueError):
    """What is wrong with a page."""


def check_whole(file: Path, field: str) -> None:
    """Check that all pages of the database lie in the file, and are well-formed.

    Args:
        file: the file with the data.
        field: beginning of the message.

    Raises:
        ValueError: if the file is truncated, damaged, or not a regular file. Whether it is an LMDB at all is left to
            LMDB.
        OSError: if the file cannot be read.
    """
    with open_regular(file) as opened:
        size = opened.seek(0, 2)
        try:
            metas = _read_metas(opened)
            if not metas:
                return
            if len(metas) == 1 and size >= 2 * metas[0].page_size:
                raise DamageError("its second page does not describe it")
            meta = max(metas, key=lambda each: each.transaction)
            needed = max(2 * meta.page_size, _end_of_tree(opened, size, meta))
        except (DamageError, struct.error) as error:
            raise ValueError(f"{field} is damaged: {error}; copy it again") from error
    if size < needed:
        raise ValueError(f"{field} is truncated: it has {size} bytes, but refers to {needed}; copy it again")


def _read_metas(opened: BinaryIO) -> list[Meta]:
    """Return what the two pages say that describe the file, if they are any.

    Raises:
        DamageError: if they give a size that pages do not have.
    """
    metas: list[Meta] = []
    start = 0
    while len(metas) < 2:
        opened.seek(start)
        page = opened.read(HEADER + 136)
        if len(page) < HEADER + 136 or struct.unpack_from("=I", page, HEADER)[0] != MAGIC:
            break
        page_size = struct.unpack_from("=I", page, HEADER + 24)[0]
        (flags,) = struct.unpack_from("=H", page, HEADER + 24 + 48 + 4)
        (root,) = struct.unpack_from("=Q", page, HEADER + 24 + 48 + 40)
        last_page, transaction = struct.unpack_from("=QQ", page, HEADER + 24 + 96)
        if page_size not in PAGE_SIZES or (metas and page_size != metas[0].page_size):
            raise DamageError(f"its pages cannot have {page_size} bytes")
        metas.append(Meta(transaction, page_size, last_page, root, flags))
        start = page_size
    return metas


def _end_of_tree(opened: BinaryIO, size: int, meta: Meta) -> int:
    """Return where the last page ends that is reachable from the root; one behind the end of the file suffices.

    Pages that were freed again before they were written may be missing at the end.

    Raises:
        DamageError: if a page is not what it should be.
    """
    if meta.flags & UNKNOWN_DATABASES:
        raise DamageError("it says that keys have several values, which is not read")
    end, seen = 0, set()
    level = [meta.root] if meta.root != NO_PAGE else []
    for _ in range(MAX_LEVELS):
        below: list[int] = []
        for number in level:
            end = max(end, (number + 1) * meta.page_size)
            if end > size:
                return end
            if number in seen or not 2 <= number <= meta.last_page:
                raise DamageError(f"page {number} is out of place")
            seen.add(number)
            opened.seek(number * meta.page_size)
            for child, first, count in _nodes(opened.read(meta.page_size), number):
                below += [] if child is None else [child]
                end = max(end, (first + count) * meta.page_size)
                if count and first + count > meta.last_page + 1:
                    raise DamageError(f"page {number} refers to page {first + count - 1}, of {meta.last_page + 1}")
        if not below:
            return end
        level = below
    raise DamageError(f"its tree has more than {MAX_LEVELS} levels")


def _nodes(page: bytes, number: int) -> Iterator[tuple[int | None, int, int]]:
    """Yield, of each node of a page, the page below it, and the first page and the number of pages of its value.

    Raises:
        DamageError: if this is not page `number`, or a node does not lie in it.
    """
    own, flags, lower, upper = struct.unpack_from("=Q2xHHH", page)
    kind = flags & KINDS
    count = (lower - HEADER) // 2
    if own != number or kind not in (BRANCH, LEAF) or not HEADER <= lower <= upper <= len(page) or lower % 2:
        raise DamageError(f"page {number} has a damaged header")
    if count < (2 if kind == BRANCH else 1):  # LMDB asserts it
        raise DamageError(f"page {number} holds too few keys")
    for place in struct.unpack_from(f"={count}H", page, HEADER):
        low, high, node_flags, key_size = struct.unpack_from("=4H", page, place if place <= len(page) - NODE else 0)
        value = place + NODE + key_size
        value_size = low | high << 16
        stored = 0 if kind == BRANCH else 8 if node_flags & BIG else value_size  # bytes of the value in this page
        if not upper <= place <= value + stored <= len(page) or (kind == LEAF and node_flags & UNKNOWN_NODES):
            raise DamageError(f"page {number} holds a damaged key")
        if kind == BRANCH:
            yield low | high << 16 | node_flags << 32, 0, 0
        elif node_flags & BIG:
            yield None, struct.unpack_from("=Q", page, value)[0], (HEADER - 1 + value_size) // len(page) + 1
