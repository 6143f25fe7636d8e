"""The noise of a sample depends on its seed and index, and on nothing else."""

import pytest
import torch

from sit_atconv.utils.randomness import check_generator, image_generator


def test_image_seeds_do_not_repeat():
    seeds = {image_generator(seed, i).initial_seed() for seed in range(3) for i in range(3000)}
    assert len(seeds) == 9000
    assert max(seeds) < 2**32


def test_an_image_has_the_same_noise_in_any_order():
    noise = [torch.randn(4, generator=image_generator(3, i)) for i in range(3)]
    assert torch.equal(torch.randn(4, generator=image_generator(3, 1)), noise[1])
    assert not torch.equal(noise[0], noise[1])


def test_seeds_count_up_and_wrap_around():
    """Published samples are drawn again from these numbers, so they may not change."""
    start = image_generator(7, 0).initial_seed()
    assert [image_generator(7, i).initial_seed() for i in (1, 2, 2**32 + 3)] == [start + 1, start + 2, start + 3]
    assert start == 2083679832


def test_a_generator_or_one_per_image():
    generator = torch.Generator()
    for accepted in (None, generator, [generator] * 2, [generator, None]):
        check_generator(accepted, 2)
    with pytest.raises(ValueError, match="generator lists 1 generators for 2 images"):
        check_generator([generator], 2)
    for refused in (3, (generator, generator), [generator, 3]):
        with pytest.raises(ValueError, match=r"must be a torch\.Generator, or a list"):
            check_generator(refused, 2)
