"""Fréchet distances against closed forms, SciPy and clean-fid, and their extrapolation."""

import inspect

import cleanfid.fid
import numpy as np
import pytest
import scipy.linalg

from sit_atconv.evaluation.frechet import fid_infinity, frechet_distance, resampled_frechet_distances
from sit_atconv.evaluation.intervals import bootstrap_resamples


@pytest.mark.parametrize("n", [500, 20])  # 20: singular covariances
def test_frechet_distance_equals_scipys_matrix_root(n, correlated, moments):
    (mean_1, cov_1), (mean_2, cov_2) = moments(correlated(n, 32, 1)), moments(correlated(n, 32, 2))
    root = scipy.linalg.sqrtm(cov_1 @ cov_2)
    expected = ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2 - 2 * root.real)
    tolerance = 1e-9 if n == 500 else 1e-5  # SciPy's root of a singular matrix is the less exact one
    assert frechet_distance(mean_1, cov_1, mean_2, cov_2) == pytest.approx(expected, rel=tolerance)


def test_frechet_distance_of_diagonal_gaussians():
    rng = np.random.default_rng(0)
    mean_1, mean_2 = rng.standard_normal((2, 50))
    std_1, std_2 = rng.uniform(0, 3, (2, 50))
    expected = ((mean_1 - mean_2) ** 2 + (std_1 - std_2) ** 2).sum()
    assert frechet_distance(mean_1, np.diag(std_1**2), mean_2, np.diag(std_2**2)) == pytest.approx(expected)


def test_frechet_distance_is_zero_for_equal_and_symmetric(correlated, moments):
    a, b = moments(correlated(30, 40, 1)), moments(correlated(100, 40, 2))
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-6 * np.trace(a[1]))
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-9)


@pytest.mark.skipif(
    "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters, reason="clean-fid 0.1.35 needs SciPy before 1.18"
)
def test_frechet_distance_equals_clean_fids(correlated, moments):
    a, b = moments(correlated(300, 64, 1)), moments(correlated(200, 64, 2))
    assert frechet_distance(*a, *b) == pytest.approx(cleanfid.fid.frechet_distance(*a, *b), rel=1e-6)


def test_frechet_distance_refuses_what_it_cannot_compare(correlated, moments):
    mean, cov = moments(correlated(30, 4, 1))
    with pytest.raises(ValueError, match="covariance_2 has shape"):
        frechet_distance(mean, cov, mean, cov[:3])
    with pytest.raises(ValueError, match="mean_2 holds numbers that are not finite"):
        frechet_distance(mean, cov, mean * np.nan, cov)
    with pytest.raises(ValueError, match="covariance_2 holds complex numbers"):
        frechet_distance(mean, cov, mean, cov.astype(complex))
    for covariances in ((cov, cov - 31 * np.eye(4)), (cov - 31 * np.eye(4), cov)):
        with pytest.raises(ValueError, match=r"covariance_[12] has the negative eigenvalue -"):
            frechet_distance(mean, covariances[0], mean, covariances[1])
    with pytest.raises(ValueError, match="covariance_1 is not symmetric"):
        frechet_distance(mean, np.triu(cov), mean, cov)


@pytest.mark.parametrize("n", [200, 25])  # more and fewer images than features
def test_resampled_distances_equal_those_of_the_repeated_images(n, correlated, moments):
    features, reference = correlated(n, 32, 1), moments(correlated(300, 32, 2))
    resamples = [np.ones(n, dtype=int), *bootstrap_resamples(n, 3), np.arange(n) % 3]
    for counts, distance in zip(resamples, resampled_frechet_distances(features, *reference, resamples), strict=True):
        expected = frechet_distance(*moments(np.repeat(features, counts, axis=0)), *reference)
        assert distance == pytest.approx(expected, rel=1e-7)  # roots of zeros, rounded


def test_fid_infinity_removes_the_bias_of_few_samples():
    """Samples of the reference's own Gaussian: the distance is 0, and finite N adds a bias of about F / N."""
    rng = np.random.default_rng(0)
    result = fid_infinity(rng.standard_normal((2000, 10)), np.zeros(10), np.eye(10))
    sizes, distances = zip(*result["points"], strict=True)
    assert sizes[0] == 200 and sizes[-1] == 2000 and len(sizes) == 15
    assert distances[-1] < distances[0] / 5
    assert abs(result["fid_infinity"]) < distances[-1] / 2
    assert 0 < result["standard_error"] < distances[-1]
    with pytest.raises(ValueError, match="at least 20 images"):
        fid_infinity(rng.standard_normal((19, 3)), np.zeros(3), np.eye(3))


def test_fid_infinity_draws_subsets_without_repeats_by_its_seed(correlated):
    features = correlated(100, 4, 1)
    mean, covariance = np.zeros(4), np.eye(4)
    first, again, other = (fid_infinity(features, mean, covariance, 5, seed)["points"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    whole = frechet_distance(features.mean(axis=0), np.cov(features, rowvar=False), mean, covariance)
    for points in (first, other):  # the last subset is the set itself
        assert points[-1] == [100, pytest.approx(whole, rel=1e-9)]


def test_frechet_distance_is_never_negative(correlated, moments):
    """Of equal Gaussians, rounding leaves either sign."""
    for seed in range(20):
        mean, covariance = moments(correlated(30, 10, seed))
        assert frechet_distance(mean, covariance, mean, covariance) >= 0
