"""Checks of values from users: what passes, and what an error says."""

import math

import numpy as np
import pytest

from sit_atconv.utils.checks import (
    MAX_PIXEL_DIMENSIONS,
    check_choice,
    check_count,
    check_eps,
    check_pixel_dimensions,
    check_positive,
)


def test_a_choice():
    check_choice("path", "vp", {"linear": 1, "vp": 2})
    with pytest.raises(ValueError, match=r"^path='cubic' is not one of: linear, vp$"):
        check_choice("path", "cubic", {"linear": 1, "vp": 2})
    with pytest.raises(ValueError, match=r"^path=None is not one of: 1, 2$"):
        check_choice("path", None, iter([1, 2]))


@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, True, "1", None])
def test_what_is_not_positive(value):
    with pytest.raises(ValueError, match=f"^rtol={value!r} must be a number above 0$"):
        check_positive("rtol", value)


@pytest.mark.parametrize("value", [1, 1e-9, math.inf])
def test_what_is_positive(value):
    check_positive("rtol", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "1", None])
def test_what_is_no_count(value):
    with pytest.raises(ValueError, match=f"^batch_size={value!r} must be a whole number of at least 1$"):
        check_count("batch_size", value)


def test_what_is_a_count():
    check_count("batch_size", 1)


@pytest.mark.parametrize("value", [-1e-9, 0.5, math.nan])
def test_what_cannot_be_cut_from_both_ends(value):
    with pytest.raises(ValueError, match=r"^sample_eps=.* must be in \[0, 0\.5\)$"):
        check_eps("sample_eps", value)


@pytest.mark.parametrize("value", [None, 0, 0.499])
def test_what_can_be_cut_from_both_ends(value):
    check_eps("sample_eps", value)


def test_images_too_large_for_their_raw_pixels():
    side = math.isqrt(MAX_PIXEL_DIMENSIONS)
    check_pixel_dimensions((side, side, 1))
    with pytest.raises(ValueError, match=rf"images of {side}×{side}×3 have {3 * side**2} .*--extractor inception"):
        check_pixel_dimensions((side, side, 3))
    assert np.prod((side, side, 1)) == MAX_PIXEL_DIMENSIONS
