"""The Inception Score of known probabilities."""

import math

import numpy as np
import pytest

from sit_atconv.evaluation.inception_score import inception_score


def test_inception_score_of_known_probabilities():
    certain = np.tile(np.eye(10), (20, 1))  # each class as often, without a doubt
    assert inception_score(certain, num_splits=2) == pytest.approx((10, 0))
    assert inception_score(np.full((50, 7), 1 / 7)) == pytest.approx((1, 0))
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    marginal = p.mean(axis=0)
    expected = math.exp((p * np.log(p / marginal)).sum(axis=1).mean())
    assert inception_score(p, num_splits=1)[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.ones((20, 3)))
    with pytest.raises(ValueError, match="num_splits=10 exceeds the 2 images"):
        inception_score(p)
