"""Arrays in .npz files, which may come from anybody and may be damaged.

What an array needs is known from its header, and bounded, before any of it is read; nothing is unpickled; and the
checksum of the whole array is checked before its values are used.
"""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

# A compressed array may be this many times larger than in its file; small ones may be of any ratio. Images and features
# compress by a factor below 10, an array of zeros by 1000.
MAX_RATIO = 20
ANY_RATIO_BYTES = 64 * 2**20
CHUNK = 2**20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, KeyError)


@dataclass(frozen=True)
class StoredArray:
    """An array in a .npz file that was not read yet.

    Attributes:
        file: the .npz file.
        member: its entry in the archive.
        shape: its shape.
        dtype: its type; never Python objects.
        fortran_order: whether the first index varies fastest.
        header_size: number of bytes before the values.
    """

    file: Path
    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    header_size: int

    def read(self) -> np.ndarray:
        """Read the array into memory.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as opened:
                array = np.lib.format.read_array(opened, allow_pickle=False)
                opened.read(1)  # the checksum is compared at the end
        except DAMAGE as error:
            raise damaged(self.file, error) from error
        return array

    def map(self) -> np.ndarray:
        """Map the array from the disk if it is stored uncompressed, otherwise read it into memory.

        Raises:
            ValueError: if it is damaged.
        """
        if self.member.compress_type != zipfile.ZIP_STORED:
            return self.read()
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as opened:
                while opened.read(CHUNK):  # which compares the checksum, unlike reading from the map
                    pass
        except DAMAGE as error:
            raise damaged(self.file, error) from error
        with self.file.open("rb") as raw:
            raw.seek(self.member.header_offset + 26)  # the lengths of name and extra field in its local header
            lengths = np.frombuffer(raw.read(4), dtype="<u2")
        offset = self.member.header_offset + 30 + int(lengths.sum()) + self.header_size
        return np.memmap(self.file, self.dtype, "r", offset, self.shape, "F" if self.fortran_order else "C")


def list_arrays(file: str | Path, names: Collection[str]) -> dict[str, StoredArray]:
    """Find arrays in a .npz file by their names, from headers alone; those that it does not hold are left out.

    Raises:
        ValueError: if the file cannot be read, or one of the arrays is not one of plain values that fits in memory.
    """
    file = Path(file)
    if not file.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{str(file)!r} is not a file")
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            for name in names:
                if (member := members.get(f"{name}.npy")) is not None:
                    check_member(file, member)  # first, since a header may also be a bomb
                    found[name] = read_header(file, archive, member)
    except DAMAGE as error:
        raise damaged(file, error) from error
    return found


def check_member(file: Path, member: zipfile.ZipInfo) -> None:
    """Raise ValueError if a member is larger than its file, or far larger when it is unpacked."""
    where = f"{member.filename} in {str(file)!r}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{where} is compressed in another way than NumPy's; save it with numpy.savez")
    if member.compress_size > os.path.getsize(file):
        raise ValueError(f"{where} is larger than the file; get or make it again")
    if member.file_size > max(ANY_RATIO_BYTES, MAX_RATIO * member.compress_size):
        raise ValueError(
            f"{where} would grow from {member.compress_size} bytes to {member.file_size}, more than {MAX_RATIO} times; "
            "if that is meant, save it uncompressed with numpy.savez"
        )


def read_header(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> StoredArray:
    """Read the header of one array, and check that it does not lie.

    Raises:
        ValueError: if NumPy does not know such a header, it is of Python objects, or its sizes are wrong.
    """
    where = f"{member.filename} in {str(file)!r}"
    with archive.open(member) as opened:
        try:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(opened)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
            raise ValueError(f"{where} has a header that NumPy does not know ({error}); save it again") from error
        header_size = opened.tell()
    if dtype.hasobject:
        raise ValueError(f"{where} holds Python objects, which only pickle can read; save plain numbers")
    if any(length < 0 for length in shape) or header_size + prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{where} is not as long as its header says; save it again with numpy.savez")
    return StoredArray(file, member, shape, dtype, fortran_order, header_size)


def damaged(file: Path, error: Exception) -> ValueError:
    """The error for a file whose content is not what was written."""
    return ValueError(f"{str(file)!r} is damaged or no .npz file ({error}); get or make it again")
