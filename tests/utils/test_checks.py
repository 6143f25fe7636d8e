"""Checks of values from users: what passes, and what an error says."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sit_atconv.utils.checks import (
    MAX_PIXEL_DIMENSIONS,
    MAX_WORKERS,
    check_choice,
    check_count,
    check_eps,
    check_float32,
    check_given,
    check_known,
    check_non_negative,
    check_pixel_dimensions,
    check_positive,
    check_seed,
    check_share,
    is_number,
    is_whole,
    near_misses,
    plain_numbers,
)


def test_a_choice():
    check_choice("path", "vp", {"linear": 1, "vp": 2})
    with pytest.raises(ValueError, match=r"^path='cubic' is not one of: linear, vp$"):
        check_choice("path", "cubic", {"linear": 1, "vp": 2})
    with pytest.raises(ValueError, match=r"^path=None is not one of: 1, 2$"):
        check_choice("path", None, iter([1, 2]))


@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, math.inf, True, "1", None])
def test_what_is_not_positive(value):
    with pytest.raises(ValueError, match=f"^rtol={value!r} must be a number above 0$"):
        check_positive("rtol", value)


@pytest.mark.parametrize("value", [1, 1e-9, 1e300])
def test_what_is_positive(value):
    check_positive("rtol", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "1", None])
def test_what_is_no_count(value):
    with pytest.raises(ValueError, match=f"^batch_size={value!r} must be a whole number of at least 1$"):
        check_count("batch_size", value)


@pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(200)])
def test_what_is_a_count(value):
    check_count("batch_size", value)


@pytest.mark.parametrize("value", [10**9 + 1, 10**24, np.int64(2**62)])
def test_what_is_more_than_can_be_meant(value):
    with pytest.raises(ValueError, match=r"^num_samples=.* is more than 1000000000; choose less$"):
        check_count("num_samples", value)
    with pytest.raises(ValueError, match=r"^num_workers=.* is more than 1024; choose less$"):
        check_count("num_workers", value, least=0, most=MAX_WORKERS)
    check_count("num_samples", 10**9)
    check_count("num_workers", 0, least=0)
    with pytest.raises(ValueError, match=r"^num_workers=-1 must be a whole number of at least 0$"):
        check_count("num_workers", -1, least=0)


@pytest.mark.parametrize("value", [1e39, 1e300, 10**39])
def test_what_float32_cannot_hold(value):
    with pytest.raises(ValueError, match=r"^learning_rate=.* is beyond 3.4e\+38, the largest float32; choose less$"):
        check_float32("learning_rate", value)
    check_float32("learning_rate", 3e38)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, np.float32("inf"), True, np.True_, "1", None, np.ones(2)])
def test_what_is_negative_or_no_number(value):
    with pytest.raises(ValueError, match=r"^scale=.* must be a number of at least 0$"):
        check_non_negative("scale", value)


def test_numbers_of_numpy_are_numbers():
    check_positive("rtol", np.float32(0.5))
    check_non_negative("scale", np.float64(0))
    check_eps("sample_eps", np.float32(0.25))
    assert is_whole(np.int32(3))
    assert not is_whole(np.float32(3))
    assert not is_number(np.True_)
    values = plain_numbers({"a": np.float32(0.5), "b": 1, "c": "text", "d": np.int64(7)})
    assert values == {"a": 0.5, "d": 7}
    assert [type(value) for value in values.values()] == [float, int]


def test_near_misses():
    assert near_misses(["sovler", "solver", "solver_type", "beta_start"], ["solver", "path"]) == ["sovler"]


def test_options_that_are_not_known():
    check_known("Thing", ["size"], ["size", "path"])
    with pytest.raises(ValueError, match=r"^Thing has no option szie; did you mean size\?$"):
        check_known("Thing", ["szie"], ["size", "path"])
    with pytest.raises(ValueError, match=r"^Thing has no option zzz; its options are path, size$"):
        check_known("Thing", ["path", "zzz"], ["size", "path"])


@pytest.mark.parametrize("value", [-1e-9, 0.5, math.nan])
def test_what_cannot_be_cut_from_both_ends(value):
    with pytest.raises(ValueError, match=r"^sample_eps=.* must be in \[0, 0\.5\)$"):
        check_eps("sample_eps", value)


@pytest.mark.parametrize("value", [None, 0, 0.499])
def test_what_can_be_cut_from_both_ends(value):
    check_eps("sample_eps", value)


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), "0.5", True, None])
def test_what_is_no_share(value):
    with pytest.raises(ValueError, match=r"f=.* must be between 0 and 1"):
        check_share("f", value)


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.5)])
def test_what_is_a_share(value):
    check_share("f", value)


def test_images_too_large_for_their_raw_pixels():
    side = math.isqrt(MAX_PIXEL_DIMENSIONS)
    check_pixel_dimensions((side, side, 1))
    with pytest.raises(ValueError, match=rf"images of {side}×{side}×3 have {3 * side**2} .*--extractor inception"):
        check_pixel_dimensions((side, side, 3))
    assert np.prod((side, side, 1)) == MAX_PIXEL_DIMENSIONS


@dataclass
class Options:
    steps: int
    names: list[str]
    folder: str | None = None


def test_null_where_a_value_is_needed():
    check_given(Options(1, []))
    with pytest.raises(ValueError, match=r"^names=null is no value; give one, or leave names out for its default$"):
        check_given(Options(1, None))


def test_text_where_text_is_needed():
    for folder in (None, "a", Path("a")):
        check_given(Options(1, [], folder))
    for folder in (1, True, ["a"], {}):
        with pytest.raises(ValueError, match=r"^folder=.* must be text$"):
            check_given(Options(1, [], folder))


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None, 2**63, math.nan])
def test_what_is_no_seed(value):
    with pytest.raises(ValueError, match=r"^seed=.* must be a whole number of at least 0, and below 2\*\*63$"):
        check_seed("seed", value)


@pytest.mark.parametrize("value", [0, 2**63 - 1, np.int64(5)])
def test_what_is_a_seed(value):
    check_seed("seed", value)
