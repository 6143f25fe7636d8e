"""What `sit-atconv train` chooses for a folder of images, and what it leaves as it was given."""

import dataclasses

import pytest

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.sizes import EPOCHS, SIZES, STEPS, chosen_steps, fit_to_images


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_configurations(size):
    config = TrainConfig(**SIZES[size])
    assert config.image_size % 4 == 0 and config.preset.startswith("SiT-ATConv-")
    assert chosen_steps(size, 10**9, config.batch_size) == STEPS[size][1]
    assert chosen_steps(size, 1, config.batch_size) == STEPS[size][0]


def test_length_follows_from_the_number_of_images():
    assert chosen_steps("small", 1600, 32) == EPOCHS * 1600 // 32
    config = fit_to_images(TrainConfig(**SIZES["small"]), "small", 1600, set())
    assert (config.max_steps, config.batch_size) == (10000, 32)
    assert config.sample_every == config.checkpoint_every == 1000
    few = fit_to_images(TrainConfig(**SIZES["small"]), "small", 7, set())
    assert (few.batch_size, few.max_steps) == (7, 2000)


def test_what_was_given_stays():
    config = dataclasses.replace(TrainConfig(**SIZES["small"]), max_steps=30, batch_size=4, sample_every=7)
    chosen = fit_to_images(config, "small", 1600, {"max_steps", "batch_size", "sample_every"})
    assert dataclasses.replace(chosen, checkpoint_every=config.checkpoint_every) == config
    assert chosen.checkpoint_every == 3
