"""Precision, recall, density and coverage against brute force."""

import numpy as np
import pytest

from sit_atconv.evaluation.neighbours import density_coverage, neighbour_radii, precision_recall, squared_distances


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


def test_duplicates_have_no_distance_and_others_their_own():
    """Whatever rounding leaves: an image and its copy lie in each other's balls, even balls of radius 0."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 30)) + 10
    distances = squared_distances(features, features.copy())
    np.testing.assert_array_equal(np.diagonal(distances), 0)
    expected = ((features[:, None] - features) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances, expected, rtol=1e-9)
    doubled = np.concatenate([features, features])
    assert precision_recall(features, doubled, k=1) == (1.0, 1.0)


@pytest.mark.parametrize("block_size", [7, 50])
def test_no_image_is_its_own_neighbour_in_any_block(block_size):
    features = np.random.default_rng(0).standard_normal((30, 4))
    distances = np.sort(((features[:, None] - features) ** 2).sum(axis=2), axis=1)  # the first one is the image itself
    for k in (1, 3):
        np.testing.assert_allclose(neighbour_radii(features, k, block_size), distances[:, k], rtol=1e-9)
