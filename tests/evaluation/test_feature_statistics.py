"""Statistics that are accumulated batch by batch, against NumPy."""

import numpy as np
import pytest

from sit_atconv.evaluation.feature_statistics import FeatureStatistics


@pytest.mark.parametrize("parts", [[200], [1, 50, 0, 149], [1] * 200])
def test_statistics_in_parts_equal_numpy(parts, correlated):
    features = correlated(200, 16, 0) + 1e6  # a sum of outer products would lose all digits of the covariance
    statistics = FeatureStatistics()
    for part in np.split(features, np.cumsum(parts)[:-1]):
        statistics.update(part)
    assert statistics.n == 200
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-12)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-6, atol=1e-8 * np.trace(expected))


def test_statistics_are_float64(correlated):
    features = correlated(100, 8, 0).astype(np.float32)
    statistics = FeatureStatistics()
    statistics.update(features)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)


def test_statistics_refuse_nan_and_one_image():
    statistics = FeatureStatistics()
    statistics.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match="features of image 2 are not finite"):
        statistics.update(np.array([[0.0, 1, 2], [0, np.nan, 2]]))
    with pytest.raises(ValueError, match="3 and 4 features"):
        statistics.update(np.zeros((1, 4)))
