"""Scenes of digits: what is said to be in them is in them."""

import numpy as np
import pytest

from sit_atconv.data import DigitsDataset, digit_scene

DIGITS = DigitsDataset()


def scene(seed: int, **options):
    return digit_scene(DIGITS, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_those_of_the_ink(seed):
    drawn = scene(seed, image_size=80, max_digits=4)
    assert drawn.image.shape == (80, 80, 3) and drawn.image.dtype == np.uint8
    assert 1 <= len(drawn.boxes) == len(drawn.labels) <= 4
    ink = drawn.classes.copy()
    for (left, top, right, bottom), label in zip(drawn.boxes, drawn.labels, strict=True):
        inside = drawn.classes[top:bottom, left:right]
        assert set(np.unique(inside)) <= {0, 1 + label}  # digits do not overlap
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):  # the box is tight
            assert (edge == 1 + label).any()
        ink[top:bottom, left:right] = 0
    assert not ink.any()
    brightness = drawn.image.mean(-1)
    assert brightness[drawn.classes > 0].mean() > brightness[drawn.classes == 0].mean() + 40


def test_scenes_follow_from_the_generator_and_differ():
    for first, second in zip(scene(3), scene(3), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(scene(3).image, scene(4).image)
    assert {len(scene(seed, image_size=96).labels) for seed in range(40)} == {1, 2, 3, 4}


def test_a_digit_needs_room():
    with pytest.raises(ValueError, match="image_size=20 has no room for a digit; it must be at least"):
        scene(0, image_size=20)
    for seed in range(10):
        scene(seed, image_size=29, max_digits=4)  # the smallest; digits without room are left out
