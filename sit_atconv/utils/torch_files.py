"""Files of `torch.save` from anybody.

Such a file is a pickle, which can call any function while it is read. Here only tensors, containers, numbers, text and
`argparse.Namespace`, in which training scripts keep their options, are unpickled; and what the pickle would take is
measured before any of it is built.
"""

import argparse
import contextlib
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .files import OutputError
from .pickles import check_pickle

ALLOWED_TYPES: list[Callable | tuple[Callable, str]] = [argparse.Namespace]
MAX_PICKLE_BYTES = 2**24  # 16 MiB; a tensor takes some 200 bytes
LEGACY_PICKLES = 5  # in a file from before PyTorch 1.6


class CraftedFileError(ValueError):
    """A file that would take memory out of proportion to its size."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name what is written in errors of writing it, for which PyTorch and safetensors have classes of their own.

    Raises:
        OutputError: in place of any of them, such as that of a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error


def read_torch_file(file: Path) -> Any:
    """Return the content of a file of `torch.save`, on the CPU.

    Raises:
        ValueError: if the file is no regular file, damaged, crafted to take memory, or holds anything but tensors,
            containers, numbers, text and `argparse.Namespace`; the error then lists the names of what it holds.
    """
    if not file.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{file} is not a file; name a file of torch.save")
    is_zip = zipfile.is_zipfile(file)
    try:
        names = check_pickle(_pickle_bytes(file), "it") if is_zip else _check_pickles(file)
        if "bytearray" in {name.rpartition(".")[2] for name in names}:  # PyTorch allows it, and so any amount of memory
            raise pickle.UnpicklingError("GLOBAL builtins.bytearray")
        with safe_globals(ALLOWED_TYPES):
            # Mapped into memory, so that the state of an optimizer, which is not needed, is not read.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # PyTorch's message is not passed on, because it recommends the unsafe way.
        raise ValueError(
            f"{file} was refused: it holds {', '.join(_refused_names(file, error)) or 'an object'}, which is neither a "
            "tensor nor a plain value and could run code. If you trust the file, load it yourself and save its state "
            "dict with safetensors"
        ) from error
    except CraftedFileError:
        raise
    except Exception as error:  # reading a damaged file may raise anything
        reason = f": {error}" if type(error) is ValueError else ""
        raise ValueError(f"{file} is damaged, or no checkpoint of PyTorch{reason}") from error


def _check_pickles(file: Path) -> list[str]:
    """Check the pickles in a file from before PyTorch 1.6: a number, the protocol, the system, the objects, their keys.

    The numbers of the tensors follow, which are not pickled.
    """
    with file.open("rb") as opened:
        stream = io.BytesIO(opened.read(MAX_PICKLE_BYTES))
    size, names = stream.getbuffer().nbytes, check_pickle(stream, "it")
    for _ in range(LEGACY_PICKLES - 1):
        if stream.tell() < size:
            names += check_pickle(stream, "it")
    return names


def _refused_names(file: Path, error: pickle.UnpicklingError) -> list[str]:
    """Return the functions and classes for which PyTorch refused a file."""
    # It raises for files before PyTorch 1.6 and for pickle protocols that torch.save does not use by default.
    with contextlib.suppress(Exception), safe_globals(ALLOWED_TYPES):
        if names := get_unsafe_globals_in_checkpoint(str(file)):
            return sorted(names)
    found = re.search(r"GLOBAL (\S+)", str(error))
    return [found[1]] if found else named_globals(file)


def named_globals(file: Path) -> list[str]:
    """Return the functions and classes that a pickle would import, found without running it."""
    names: list[str] = []
    texts: list[str] = []  # those before STACK_GLOBAL are its module and its name
    try:
        for operation, argument, _ in pickletools.genops(_pickle_bytes(file)):
            if operation.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except (ValueError, zipfile.BadZipFile):
        pass  # not a pickle from here on
    return list(dict.fromkeys(names))


def _pickle_bytes(file: Path) -> bytes:
    """Return the pickle in a file of torch.save, whose other parts are the numbers of its tensors.

    Raises:
        CraftedFileError: if parts are compressed, or larger than the file, and so could take any amount of memory.
    """
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            return opened.read(MAX_PICKLE_BYTES)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if compressed := [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]:
            raise CraftedFileError(
                f"{file} was refused: {compressed[0]} in it is compressed, as torch.save never does it; load the file "
                "yourself, if you trust it, and save its state dict with safetensors"
            )
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise CraftedFileError(f"{file} was refused: its parts are larger than the file; get the file again")
        if sum(member.file_size for member in pickles) > MAX_PICKLE_BYTES:
            raise CraftedFileError(
                f"{file} was refused: what describes its tensors has more than {MAX_PICKLE_BYTES} bytes; save its "
                "state dict alone"
            )
        return b"".join(archive.read(member) for member in pickles)
