"""Weights from files of unknown origin: tensors and plain values come out of them, and nothing in them can run.

A PyTorch file is a pickle, which can call any function while it is read. Here only tensors, containers, numbers, text
and `argparse.Namespace`, in which training scripts keep their options, are let through.
"""

import argparse
import json
import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

ALLOWED_TYPES = [argparse.Namespace]
WEIGHTS = ("ema", "model")  # what training scripts call them; the first is taken where there are both
MAX_DEPTH = 8  # of containers in options; deeper ones, or one that holds itself, are cut off
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile


def read_checkpoint(file: str | Path, weights: str | None = None) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Read a state dict, and the options of its training where they are there.

    Args:
        file: a safetensors file; or one of `torch.save`, holding a state dict or a training script's dictionary of
            "model", "ema", "opt" and "args", of which any may be missing.
        weights: "ema" or "model"; None takes the moving average where there is one.

    Returns:
        The state dict without the prefixes of DDP and torch.compile; the options ({} where there are none); and which
        weights they are: "ema", "model" or "only", where the file holds no others.

    Raises:
        ValueError: for a file that is missing, damaged, holds objects that may run code (with their names), or has
            not these weights.
    """
    file = Path(file)
    content = _read(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; a state dict, or a dictionary with one, is needed")
    args = plain_values(content.get("args"))
    there = [name for name in WEIGHTS if isinstance(content.get(name), dict)]
    if weights is not None and weights not in there:
        names = ", ".join(there) or "one set of weights without a name"
        raise ValueError(f"weights={weights!r}: {file} does not hold these; it holds {names}")
    which = weights or (there[0] if there else "only")
    state = content[which] if there else content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(f"{file}: state_dict is a {type(state).__name__}, not a dictionary of tensors")
    if others := [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{file} holds no state dict: {', '.join(others[:10])} are not tensors")
    if not state:
        raise ValueError(f"{file} holds no tensors")
    names = {}
    for name in state:
        if not isinstance(name, str):
            raise ValueError(f"{file} holds no state dict: {name!r} is no name of a tensor")
        if (other := names.setdefault(WRAPPERS.sub("", name), name)) != name:
            raise ValueError(f"{file} holds {other} and {name}, which are one name without the prefixes of DDP")
    return {short: state[name] for short, name in names.items()}, args if isinstance(args, dict) else {}, which


def plain_values(value, depth: int = 0):
    """The numbers, texts, lists and dictionaries in a value from a file, and None for all else."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, (dict, list, tuple, set)) and depth == MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {str(name): plain_values(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain_values(inner, depth + 1) for inner in value]
    return value if type(value) in (bool, int, float, str) else None


def _read(file: Path):
    if not file.is_file():
        raise ValueError(f"{file} is no file; name a .pt or .safetensors file")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                args = (opened.metadata() or {}).get("args", "{}")
            return {"state_dict": load_file(file), "args": json.loads(args)}
        except Exception as error:
            raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals(ALLOWED_TYPES):
            # Mapped into memory: of an optimizer's state, which is not needed, nothing is read.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        # What torch says of it is not passed on: it recommends the unsafe way.
        found = re.search(r"GLOBAL (\S+)", str(error))
        names = [found[1]] if found else named_globals(file)
        raise ValueError(
            f"{file} was refused: it holds {', '.join(names) or 'an object'}, which is neither a tensor nor a "
            "plain value and could run code. Where you trust the file, load it yourself and save its state dict with "
            "safetensors"
        ) from error
    except Exception as error:  # a damaged file may stumble over anything
        raise ValueError(f"{file} is damaged, or no checkpoint of PyTorch") from error


def named_globals(file: Path) -> list[str]:
    """The functions and classes that a pickle would import, found without running it."""
    names, texts = [], []
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                data = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        else:
            data = file.read_bytes()
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "GLOBAL":
                names.append(argument.replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except (ValueError, zipfile.BadZipFile):
        pass  # not a pickle from here on
    return list(dict.fromkeys(names))
