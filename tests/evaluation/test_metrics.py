"""Metrics against closed forms, SciPy, clean-fid's own functions and brute force."""

import inspect
import math

import cleanfid.fid
import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_limits

from sit_atconv.evaluation.feature_statistics import FeatureStatistics
from sit_atconv.evaluation.frechet import fid_infinity, frechet_distance, resampled_frechet_distances
from sit_atconv.evaluation.inception_score import inception_score
from sit_atconv.evaluation.intervals import bootstrap_interval, bootstrap_resamples, mean_interval
from sit_atconv.evaluation.kernel import kernel_distance
from sit_atconv.evaluation.neighbours import density_coverage, precision_recall


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def correlated(n: int, F: int, seed: int) -> np.ndarray:
    """Features (n, F) with correlations, scales from 0.1 to 10 and a mean away from 0."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, F)) * np.logspace(-1, 1, F)) @ rng.standard_normal((F, F)) + rng.standard_normal(F)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


@pytest.mark.parametrize("n", [500, 20])  # 20: singular covariances
def test_frechet_distance_equals_scipys_matrix_root(n):
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


def test_frechet_distance_is_zero_for_equal_and_symmetric():
    a, b = moments(correlated(30, 40, 1)), moments(correlated(100, 40, 2))
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-6 * np.trace(a[1]))
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-9)


@pytest.mark.skipif(
    "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters, reason="clean-fid 0.1.35 needs SciPy before 1.18"
)
def test_frechet_distance_equals_clean_fids():
    a, b = moments(correlated(300, 64, 1)), moments(correlated(200, 64, 2))
    assert frechet_distance(*a, *b) == pytest.approx(cleanfid.fid.frechet_distance(*a, *b), rel=1e-6)


def test_frechet_distance_refuses_what_it_cannot_compare():
    mean, cov = moments(correlated(30, 4, 1))
    with pytest.raises(ValueError, match="covariance_2 has shape"):
        frechet_distance(mean, cov, mean, cov[:3])
    with pytest.raises(ValueError, match="mean_2 holds numbers that are not finite"):
        frechet_distance(mean, cov, mean * np.nan, cov)


@pytest.mark.parametrize("parts", [[200], [1, 50, 0, 149], [1] * 200])
def test_statistics_in_parts_equal_numpy(parts):
    features = correlated(200, 16, 0) + 1e6  # a sum of outer products would lose all digits of the covariance
    statistics = FeatureStatistics()
    for part in np.split(features, np.cumsum(parts)[:-1]):
        statistics.update(part)
    assert statistics.n == 200
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-12)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-6, atol=1e-8 * np.trace(expected))


def test_statistics_merge():
    features = correlated(90, 8, 0)
    parts = []
    for part in (features[:30], features[30:30], features[30:]):
        parts.append(FeatureStatistics())
        parts[-1].update(part)
    total = FeatureStatistics()
    for part in parts:
        total.merge(part)
    np.testing.assert_allclose(total.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(features, rowvar=False), rtol=1e-10)
    np.testing.assert_array_equal(parts[0].mean, features[:30].mean(axis=0))  # merging left the parts alone


def test_statistics_are_float64():
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


@pytest.mark.parametrize("n", [200, 25])  # more and fewer images than features
def test_resampled_distances_equal_those_of_the_repeated_images(n):
    features, reference = correlated(n, 32, 1), moments(correlated(300, 32, 2))
    resamples = [np.ones(n, dtype=int), *bootstrap_resamples(n, 3), np.arange(n) % 3]
    for counts, distance in zip(resamples, resampled_frechet_distances(features, *reference, resamples), strict=True):
        expected = frechet_distance(*moments(np.repeat(features, counts, axis=0)), *reference)
        assert distance == pytest.approx(expected, rel=1e-7)  # roots of zeros, rounded


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


@pytest.mark.parametrize("n", [60, 300])  # subsets: of all images, and drawn
def test_kernel_distance_equals_clean_fids(n):
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


def brute_force(samples: np.ndarray, reference: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage, one image after another."""

    def radius(points, i):
        return sorted(np.linalg.norm(points[j] - points[i]) for j in range(len(points)) if j != i)[k - 1]

    def balls_around(point, centres, radii):
        return sum(np.linalg.norm(point - centre) <= r for centre, r in zip(centres, radii, strict=True))

    reference_radii = [radius(reference, i) for i in range(len(reference))]
    sample_radii = [radius(samples, i) for i in range(len(samples))]
    inside = [balls_around(x, reference, reference_radii) for x in samples]
    hit = [
        any(np.linalg.norm(x - centre) <= r for x in samples)
        for centre, r in zip(reference, reference_radii, strict=True)
    ]
    return {
        "precision": np.mean([n > 0 for n in inside]),
        "recall": np.mean([balls_around(y, samples, sample_radii) > 0 for y in reference]),
        "density": sum(inside) / (k * len(samples)),
        "coverage": np.mean(hit),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_metrics_equal_brute_force(k):
    rng = np.random.default_rng(k)
    reference = rng.standard_normal((60, 4)) + 100  # a common offset must not cost digits
    samples = rng.standard_normal((45, 4)) * 0.7 + 100.3
    samples[:5] = reference[:5]  # duplicates
    expected = brute_force(samples, reference, k)
    assert precision_recall(samples, reference, k) == (expected["precision"], expected["recall"])
    assert density_coverage(samples, reference, k) == pytest.approx((expected["density"], expected["coverage"]))
    assert 0.1 < expected["precision"] and 0.1 < expected["recall"] < 1


def test_neighbour_metrics_over_several_blocks():
    """More than one block of 1,000 images on each side: disjoint halves of one distribution, and a far one."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1500, 2))
    precision, recall = precision_recall(a, b)
    density, coverage = density_coverage(a, b)
    assert precision > 0.95 and recall > 0.95
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # its expectation for equal distributions and counts
    assert precision_recall(a + 100, b) == (0, 0) and density_coverage(a + 100, b) == (0, 0)


def test_images_that_are_all_alike():
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
    with pytest.raises(ValueError, match="samples: those of image 7 are not finite"):
        metric(broken, features)
    with pytest.raises(ValueError, match="not 1"):
        metric(features, features[:1])
    with pytest.raises(ValueError, match="3 features, the reference 2"):
        metric(features, features[:, :2])
    with pytest.raises(ValueError, match="must be"):
        metric(features[0], features)
