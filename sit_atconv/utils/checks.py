"""Checks of values from users; each raises a ValueError that names the field, the value and what is allowed."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable
from numbers import Integral, Real
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from .suggestions import did_you_mean


def is_whole(value) -> bool:
    """Whether `value` is a whole number of Python or NumPy; booleans and tensors are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether `value` is a real number of Python or NumPy, NaN and infinity included; booleans and tensors are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain_numbers(values: dict) -> dict:
    """Return the entries of a dictionary that are numbers of NumPy, as numbers of Python, which JSON can hold."""
    return {name: value.item() for name, value in values.items() if isinstance(value, np.generic)}


def check_known(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError if an option is not among the known ones; it is named, and so is the nearest known one."""
    known = sorted(known)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"; its options are {', '.join(known)}"
            raise ValueError(f"{owner} has no option {name}{hint}")


def near_misses(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those names that are nearly, but not exactly, known ones, as misspelt options are.

    A name that continues a known one, such as diffusers' `prediction_type`, is taken for what it says.
    """
    known = set(known)
    near = [name for name in names if name not in known and difflib.get_close_matches(name, known, 1, cutoff=0.8)]
    return [name for name in near if name.rpartition("_")[0] not in known]


def check_given(options: Any) -> None:
    """Raise ValueError if a field of a dataclass of options is None, no text or no dictionary, against its type.

    None is what `null` in a YAML file or on the command line becomes.
    """
    types = get_type_hints(type(options))
    for each in dataclasses.fields(options):
        value, hint = getattr(options, each.name), types[each.name]
        allowed = {get_origin(kind) or kind for kind in (get_args(hint) if get_origin(hint) is UnionType else (hint,))}
        if value is None and type(None) not in allowed | set(get_args(hint)):  # the latter: of Literal[…] | None
            raise ValueError(f"{each.name}=null is no value; give one, or leave {each.name} out for its default")
        if allowed <= {str, type(None)} and not isinstance(value, (str, os.PathLike, type(None))):
            raise ValueError(f"{each.name}={value!r} must be text")
        if allowed == {dict} and not isinstance(value, dict):
            raise ValueError(f"{each.name}={value!r} must be names and values, such as {{name: 1}}")


def check_choice(field: str, value, choices: Iterable) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
        raise ValueError(f"{field}={value!r} is not one of: {', '.join(map(str, choices))}{hint}")


FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_COUNT = 10**9  # of images, steps, … that can be meant
MAX_SOLVER_STEPS = 10**6
MAX_WORKERS = 1024  # processes


def check_float32(field: str, value) -> None:
    """Raise ValueError if a finite number is too large for the float32 in which networks compute."""
    if abs(value) > FLOAT32_MAX:
        raise ValueError(f"{field}={value!r} is beyond {FLOAT32_MAX:.3g}, the largest float32; choose less")


def check_positive(field: str, value) -> None:
    """Raise ValueError unless `value` is a finite number above zero."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{field}={value!r} must be a number above 0")


def check_device(field: str, device: str) -> None:
    """Raise ValueError unless `device` is written as PyTorch names devices; `pick_device` asks PyTorch for it."""
    if device == "gpu" or not re.fullmatch(r"[a-z]+(:[0-9]+)?", device):
        raise ValueError(f"{field}={device!r} is no device of PyTorch; give auto, cpu, cuda, cuda:1, mps or the like")


def check_eps(field: str, value) -> None:
    """Raise ValueError unless `value` is None or can be cut from both ends of the time interval [0, 1]."""
    if value is not None and not (is_number(value) and 0 <= value < 0.5):
        raise ValueError(f"{field}={value!r} must be in [0, 0.5)")


def check_share(field: str, value) -> None:
    """Raise ValueError unless `value` is a number between 0 and 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{field}={value!r} must be between 0 and 1")


def check_count(field: str, value, least: int = 1, most: float = MAX_COUNT) -> None:
    """Raise ValueError unless `value` is a whole number from `least` to `most`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{field}={value!r} must be a whole number of at least {least}")
    if value > most:
        raise ValueError(f"{field}={value!r} is more than {most}; choose less")


def check_non_negative(field: str, value) -> None:
    """Raise ValueError unless `value` is a finite number of at least zero."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{field}={value!r} must be a number of at least 0")


def check_seed(field: str, value) -> None:
    """Raise ValueError unless `value` can be the seed of PyTorch's and NumPy's generators."""
    if not is_whole(value) or not 0 <= value < 2**63:
        raise ValueError(f"{field}={value!r} must be a whole number of at least 0, and below 2**63")


MAX_PIXEL_DIMENSIONS = 4096  # a covariance of 4096² float64 is 128 MiB


def check_pixel_dimensions(shape: tuple[int, int, int]) -> None:
    """Raise ValueError if images of this shape (H, W, C) are too large to be compared by their raw pixels."""
    if np.prod(shape) > MAX_PIXEL_DIMENSIONS:
        raise ValueError(
            f"images of {'×'.join(map(str, shape))} have {np.prod(shape)} pixel values; raw pixels are compared up to "
            f"{MAX_PIXEL_DIMENSIONS} values. Use --extractor inception or timm:NAME"
        )
