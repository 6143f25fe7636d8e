"""Read weights from files of unknown origin: tensors and plain values come out, and nothing in a file can run.

`utils/torch_files.py` unpickles; what it returns is checked here.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ..utils.bounded_text import load_json
from ..utils.torch_files import CraftedFileError, read_torch_file

# Names in training scripts' files; the first weights take precedence, and each has the first name that a file holds.
WEIGHTS = {"ema": ("ema", "model_ema"), "model": ("model",), "vae": ("vae",)}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAX_DEPTH = 8  # of containers in options; deeper ones, such as one that contains itself, are cut off
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # prefixes of DistributedDataParallel and torch.compile


def read_checkpoint(file: str | Path, weights: str | None = None) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Read a state dict, and the options of its training if the file holds them.

    Args:
        file: a safetensors file; or a file of `torch.save` with a state dict, or with a training script's dictionary
            of "model", "ema" (or "model_ema"), "opt" and "args", any of which may be missing.
        weights: "ema", "model" or "vae"; if None, they take precedence in this order.

    Returns:
        The state dict without the prefixes of DDP and torch.compile; the options ({} if there are none); and which
        weights they are: "ema", "model", "vae", or "only" if the file holds a single set without a name.

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
    if tensor.is_nested:
        return "nested"
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
    return _read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)


def _read_safetensors(file: Path) -> dict:
    try:
        with safe_open(file, "pt") as opened:
            args = (opened.metadata() or {}).get("args", "{}")
        return {"state_dict": load_file(file), "args": load_json(args, f"{file}: the args in its metadata")}
    except Exception as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from error
