"""What all metrics have in common: sets that are all alike, and features that cannot be measured."""

import math

import numpy as np
import pytest

from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.kernel_distance import kernel_distance
from sit_atconv.evaluation.neighbours import density_coverage, precision_recall


def test_images_that_are_all_alike(moments):
    constant, reference = np.ones((30, 4)), np.random.default_rng(0).standard_normal((30, 4))
    assert precision_recall(constant, constant) == (1, 1)
    assert precision_recall(constant, reference)[1] == 0  # balls without a width hold no image of the reference
    assert math.isfinite(frechet_distance(*moments(constant), *moments(reference)))
    assert math.isfinite(kernel_distance(constant, reference)[0])


@pytest.mark.parametrize("metric", [kernel_distance, precision_recall, density_coverage])
def test_metrics_refuse_what_they_cannot_measure(metric):
    features = np.random.default_rng(0).standard_normal((20, 3))
    broken = features.copy()
    broken[7, 1] = np.nan
    with pytest.raises(ValueError, match="samples: the values of image 7 are not finite"):
        metric(broken, features)
    with pytest.raises(ValueError, match="not 1"):
        metric(features, features[:1])
    with pytest.raises(ValueError, match="3 features, the reference 2"):
        metric(features, features[:, :2])
    with pytest.raises(ValueError, match="must be"):
        metric(features[0], features)
