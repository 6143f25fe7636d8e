"""Read weights from files of unknown origin: tensors and plain values come out, and nothing in a file can run.

A PyTorch file is a pickle, which can call any function while it is read. Here only tensors, containers, numbers, text
and `argparse.Namespace`, in which training scripts keep their options, are unpickled.
"""

import argparse
import contextlib
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ..utils.bounded_text import load_json
from ..utils.pickles import check_pickle

ALLOWED_TYPES: list[Callable | tuple[Callable, str]] = [argparse.Namespace]
# Names in training scripts' files; the first weights take precedence, and each has the first name that a file holds.
WEIGHTS = {"ema": ("ema", "model_ema"), "model": ("model",)}
MAX_PICKLE_BYTES = 2**24  # 16 MiB; a tensor takes some 200 bytes
LEGACY_PICKLES = 5  # in a file from before PyTorch 1.6
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAX_DEPTH = 8  # of containers in options; deeper ones, such as one that contains itself, are cut off
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # prefixes of DistributedDataParallel and torch.compile


class CraftedFileError(ValueError):
    """A file that would take memory out of proportion to its size."""


def read_checkpoint(file: str | Path, weights: str | None = None) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Read a state dict, and the options of its training if the file holds them.

    Args:
        file: a safetensors file; or a file of `torch.save` with a state dict, or with a training script's dictionary
            of "model", "ema" (or "model_ema"), "opt" and "args", any of which may be missing.
        weights: "ema" or "model"; if None, the EMA takes precedence.

    Returns:
        The state dict without the prefixes of DDP and torch.compile; the options ({} if there are none); and which
        weights they are: "ema", "model", or "only" if the file holds a single set without a name.

    Raises:
        ValueError: if the file is missing or damaged, holds objects that may run code (the error lists their names),
            or does not hold these weights.
    """
    file = Path(file)
    content = _read(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; a state dict, or a dictionary with one, is needed")
    args = plain_values(content.get("args"))
    present = {}
    for kind, keys in WEIGHTS.items():
        held = [content[key] for key in keys if isinstance(content.get(key), dict)]
        present.update({kind: held[0]} if held else {})
    if weights is not None and weights not in present:
        names = ", ".join(present) or "one set of weights without a name"
        raise ValueError(f"weights={weights!r}: {file} does not hold these; it holds {names}")
    which = weights or next(iter(present), "only")
    state = present[which] if present else content.get("state_dict", content)
    return _checked_state(file, state), args if isinstance(args, dict) else {}, which


def _checked_state(file: Path, state: Any) -> dict[str, torch.Tensor]:
    """Return a state dict without the prefixes of wrappers; raise ValueError if it is none."""
    if not isinstance(state, dict):
        raise ValueError(f"{file}: state_dict is a {type(state).__name__}, not a dictionary of tensors")
    if others := [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{file} holds no state dict: {', '.join(others[:10])} are not tensors")
    if not state:
        raise ValueError(f"{file} holds no tensors")
    names: dict[str, str] = {}  # without prefixes -> with them
    for name in state:
        if not isinstance(name, str):
            raise ValueError(f"{file} holds no state dict: {name!r} is not the name of a tensor")
        if (other := names.setdefault(WRAPPERS.sub("", name), name)) != name:
            raise ValueError(f"{file} holds {other} and {name}, which are one name without the prefixes of DDP")
    _check_tensors(file, state)
    return {short: state[name] for short, name in names.items()}


def _is_counter(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is the number of batches that a BatchNorm has seen, which is no weight."""
    plain = type(tensor) is torch.Tensor and tensor.layout == torch.strided
    return name.endswith(".num_batches_tracked") and plain and tensor.dtype == torch.int64 and tensor.ndim == 0


def _check_tensors(file: Path, state: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless all tensors are plain ones of finite numbers, which the file really holds."""
    weights = {name: tensor for name, tensor in state.items() if not _is_counter(name, tensor)}
    if others := [f"{name} ({kind})" for name, tensor in weights.items() if (kind := _unusual_kind(tensor))]:
        raise ValueError(
            f"{file}: weights must be dense tensors of {', '.join(str(each)[6:] for each in FLOATS)}, unlike "
            f"{', '.join(others[:10])}; convert them with PyTorch and save the state dict again"
        )
    # A tensor may show one number as many, and two tensors the same numbers.
    needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if needed > 2 * file.stat().st_size:
        raise CraftedFileError(
            f"{file} was refused: its tensors have {needed} bytes, and the file {file.stat().st_size}, so that it "
            "repeats numbers; save contiguous copies of the tensors"
        )
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{file}: {', '.join(broken[:10])} {'hold' if len(broken) > 1 else 'holds'} NaN or infinity, so the model "
            "makes no images; use an earlier checkpoint"
        )


def _unusual_kind(tensor: torch.Tensor) -> str | None:
    """Return in what a tensor differs from a plain one of real numbers in memory, None if in nothing."""
    if tensor.layout != torch.strided:
        return f"{tensor.layout}".removeprefix("torch.")
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return type(tensor).__name__
    return None if tensor.dtype in FLOATS else str(tensor.dtype).removeprefix("torch.")


def plain_values(value: Any, depth: int = 0) -> Any:
    """Return the numbers, texts, lists and dictionaries in a value from a file, with None in place of all else."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, (dict, list, tuple, set)) and depth == MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {str(name): plain_values(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain_values(inner, depth + 1) for inner in value]
    return value if type(value) in (bool, int, float, str) else None


def _read(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} is not a file; name a .pt or .safetensors file")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path) -> dict:
    try:
        with safe_open(file, "pt") as opened:
            args = (opened.metadata() or {}).get("args", "{}")
        return {"state_dict": load_file(file), "args": load_json(args, f"{file}: the args in its metadata")}
    except Exception as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from error


def _read_pickle(file: Path) -> Any:
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
