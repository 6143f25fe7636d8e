"""Confidence intervals: their coverage, and Student's t in closed form."""

import math

import numpy as np
import pytest

from sit_atconv.evaluation.frechet import frechet_distance, resampled_frechet_distances
from sit_atconv.evaluation.intervals import bootstrap_interval, bootstrap_resamples, mean_interval


def test_bootstrap_interval_covers_the_truth():
    """One feature of unit variance: FID to N(0, 1) of N(m, 1) is m², whose 95 % interval should hold it most times."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for i in range(40):
        features = rng.standard_normal((200, 1)) + 2
        mean, covariance = np.zeros(1), np.eye(1)
        estimate = frechet_distance(
            *map(np.atleast_1d, (features.mean(0), np.atleast_2d(features.var(ddof=1)))), mean, covariance
        )
        resamples = bootstrap_resamples(200, 200, seed=i)
        low, high = bootstrap_interval(
            estimate, list(resampled_frechet_distances(features, mean, covariance, resamples))
        )
        covered += low <= 4 <= high
        widths.append(high - low)
    assert covered >= 34
    # m̂² has a standard deviation of 2m/√N: the interval is 2 · 1.96 of them wide
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 4 / math.sqrt(200), rel=0.1)


def test_bootstrap_resamples_are_paired():
    first, again, other = (np.stack(list(bootstrap_resamples(50, 4, seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first.sum(axis=1) == 50).all()


def test_mean_interval_is_students():
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2)
    assert (high - low) / 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval([1.0])
