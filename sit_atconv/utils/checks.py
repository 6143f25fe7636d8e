"""Checks of values from users; each raises a ValueError that names the field, the value and what is allowed."""

from collections.abc import Iterable

import numpy as np


def check_choice(field: str, value, choices: Iterable) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not one of: {', '.join(map(str, choices))}")


def check_positive(field: str, value) -> None:
    """Raise ValueError unless `value` is a number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{field}={value!r} must be a number above 0")


def check_eps(field: str, value) -> None:
    """Raise ValueError unless `value` is None or can be cut from both ends of the time interval [0, 1]."""
    if value is not None and not 0 <= value < 0.5:
        raise ValueError(f"{field}={value!r} must be in [0, 0.5)")


def check_count(field: str, value) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field}={value!r} must be a whole number of at least 1")


MAX_PIXEL_DIMENSIONS = 4096  # a covariance of 4096² float64 is 128 MiB


def check_pixel_dimensions(shape: tuple[int, int, int]) -> None:
    """Raise ValueError if images of this shape (H, W, C) are too large to be compared by their raw pixels."""
    if np.prod(shape) > MAX_PIXEL_DIMENSIONS:
        raise ValueError(
            f"images of {'×'.join(map(str, shape))} have {np.prod(shape)} pixel values; raw pixels are compared up to "
            f"{MAX_PIXEL_DIMENSIONS} values. Use eval/fid.py with --extractor inception or timm:NAME"
        )
