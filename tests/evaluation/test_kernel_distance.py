"""KID against clean-fid, and its expectation."""

import math

import cleanfid.fid
import numpy as np
import pytest

from sit_atconv.evaluation.kernel_distance import kernel_distance


@pytest.mark.parametrize("n", [60, 300])  # subsets: of all images, and drawn
def test_kernel_distance_equals_clean_fids(n, correlated):
    a, b = correlated(n, 16, 1) / 10, correlated(n + 20, 16, 2) / 10
    np.random.seed(3)
    expected = cleanfid.fid.kernel_distance(a, b, num_subsets=20, max_subset_size=100)
    mean, std = kernel_distance(a, b, num_subsets=20, subset_size=100, seed=3)
    assert mean == pytest.approx(expected, rel=1e-9)
    assert std > 0


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(0)
    values = [kernel_distance(*rng.standard_normal((2, 30, 4)), num_subsets=1)[0] for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300)


def test_one_subset_has_no_deviation(correlated):
    a, b = correlated(50, 4, 1), correlated(50, 4, 2)
    assert kernel_distance(a, b, num_subsets=1, subset_size=20)[1] is None
    assert kernel_distance(a, b, num_subsets=5, subset_size=50)[1] is None  # each holds everything
    assert kernel_distance(a, b, num_subsets=5, subset_size=49)[1] > 0
