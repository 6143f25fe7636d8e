"""Random numbers are a function of seed, stream and position."""

import numpy as np
import pytest
import torch
from scipy import stats

from sit_atconv.data import Stream, draw, sample_generator


def test_draws_are_a_function_of_seed_stream_and_position():
    global_state = torch.get_rng_state()
    drawn = draw(0, Stream.NOISE, 123_456_789_012, (2, 3))
    assert drawn.dtype == torch.float32
    assert drawn.shape == (2, 3)
    assert draw(0, Stream.TIME, 5).shape == ()
    assert torch.equal(drawn, draw(0, Stream.NOISE, 123_456_789_012, (2, 3)))
    for other in (
        draw(1, Stream.NOISE, 123_456_789_012, (2, 3)),
        draw(0, Stream.TIME, 123_456_789_012, (2, 3)),
        draw(0, Stream.NOISE, 123_456_789_013, (2, 3)),
    ):
        assert not torch.isclose(drawn, other).any()
    assert torch.equal(torch.get_rng_state(), global_state)


def test_draws_are_standard_normal_and_independent():
    draws = torch.stack([draw(0, Stream.NOISE, position, (8,)) for position in range(2000)]).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.03
    flips = torch.stack([draw(0, Stream.FLIP, position, (8,)) for position in range(2000)])
    assert abs(torch.corrcoef(torch.stack([draws.flatten(), flips.flatten()]))[0, 1]) < 0.03


def test_long_draws_do_not_run_into_the_next_position():
    long = sample_generator(0, Stream.NOISE, 7).standard_normal(100_000)
    following = sample_generator(0, Stream.NOISE, 8).standard_normal(8)
    assert not np.isin(following, long).any()


@pytest.mark.parametrize(
    ("stream", "uniform", "normal"),
    [
        ("ORDER", 0.08930425349236748, -0.29321369528770447),
        ("FLIP", 0.20399275757735003, -0.4768257141113281),
        ("NOISE", 0.743674675743381, -0.10893572121858597),
        ("TIME", 0.28828428199522393, 0.11267928779125214),
        ("CLASS_DROPOUT", 0.28499252338606484, 1.055902361869812),
        ("POSTERIOR", 0.8260339799106949, -0.13495218753814697),
        ("SUBSTITUTE", 0.14346552280086144, -0.6458386182785034),
    ],
)
def test_random_numbers_stay_as_they_are(stream, uniform, normal):
    """A run that is resumed with a later version of this package goes on with the same numbers."""
    assert sample_generator(7, Stream[stream], 123).random() == uniform
    assert draw(7, Stream[stream], 123).item() == normal
