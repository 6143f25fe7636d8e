"""The verdict says who is ahead, how sure that is, and at what cost."""

import pytest

from sit_atconv.evaluation.comparison_verdict import verdict


def row(mean: float, interval: list | None, *seeds: dict) -> dict:
    return {"model": "ATConv", "per_seed": list(seeds), "mean": mean, "interval": interval}


def seed(difference: float, interval: list | None = None) -> dict:
    return {"seed": 0, "difference": difference, "interval": interval}


@pytest.mark.parametrize(
    "found, expected",
    [
        (
            row(1.25, [0.5, 2.0], seed(1.0), seed(1.5)),
            "ATConv is 1.25 FID behind SA, 95 % [0.50, 2.00] over 2 seeds, at 0.73 of the time of a forward pass.",
        ),
        (
            row(-1.25, [-2.0, -0.5], seed(-1.0), seed(-1.5)),
            "ATConv is 1.25 FID ahead of SA, 95 % [0.50, 2.00] over 2 seeds, at 0.73 of the time of a forward pass.",
        ),
        (
            row(12.5, None, seed(12.5, [-1.0, 26.0])),
            "ATConv is 12.5 FID behind SA, 95 % [-1.0, 26.0] over samples of one seed, which includes 0: they are not "
            "told apart, at 0.73 of the time of a forward pass.",
        ),
        (
            row(0.5, None, seed(0.5)),
            "ATConv is 0.500 FID behind SA, one seed without an interval, at 0.73 of the time of a forward pass.",
        ),
        (
            {"model": "ATConv", "per_seed": []},
            "ATConv and SA have no seed in common, so their FIDs are not compared; at 0.73 of the time of a forward "
            "pass.",
        ),
    ],
)
def test_the_verdict_in_words(found, expected):
    assert verdict([found], "SA", {"SA": 1.0, "ATConv": 0.7312}) == [expected]
