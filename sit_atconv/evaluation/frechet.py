"""Fréchet distances between Gaussians fitted to features (FID, sFID), and FID extrapolated to infinitely many samples.

Everything is computed in float64 on the CPU. N images, F features each.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from ..utils.checks import check_count
from .feature_statistics import check_covariance, check_features


def covariance_root(covariance: np.ndarray) -> np.ndarray:
    """Σ^½ of a symmetric positive semi-definite matrix (F, F), which may be singular."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T  # rounding may make a zero negative


def root_trace(matrix: np.ndarray) -> float:
    """Tr(M^½) of a symmetric positive semi-definite matrix."""
    return float(np.sqrt(np.linalg.eigvalsh((matrix + matrix.T) / 2).clip(min=0)).sum())


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), the squared Wasserstein-2 distance of two Gaussians (arXiv 1706.08500).

    Σ₁Σ₂ has the same eigenvalues as the symmetric Σ₁^½ Σ₂ Σ₁^½. Summing the square roots of these needs no general
    matrix root, and no offset for singular covariances.

    Args:
        mean_1, mean_2: means of the Gaussians, (F,).
        covariance_1, covariance_2: their covariances, (F, F), symmetric and positive semi-definite.

    Raises:
        ValueError: if shapes do not fit, numbers are not real and finite, or a covariance is none.
    """
    F = len(mean_1)
    for name, value, shape in (
        ("mean_1", mean_1, (F,)),
        ("mean_2", mean_2, (F,)),
        ("covariance_1", covariance_1, (F, F)),
        ("covariance_2", covariance_2, (F, F)),
    ):
        if np.shape(value) != shape:
            raise ValueError(f"{name} has shape {np.shape(value)}, but {shape} is needed")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        if np.iscomplexobj(value):
            raise ValueError(f"{name} holds complex numbers; a distance is defined for real ones")
        if len(shape) == 2:
            check_covariance(name, value)
    root = covariance_root(covariance_1)
    difference = mean_1 - mean_2
    distance = difference @ difference + np.trace(covariance_1) + np.trace(covariance_2)
    distance -= 2 * root_trace(root @ covariance_2 @ root)
    return max(float(distance), 0.0)  # for equal Gaussians, rounding may make it negative


def resampled_frechet_distances(
    features: np.ndarray, mean: np.ndarray, covariance: np.ndarray, resamples: Iterable[np.ndarray]
) -> Iterator[float]:
    """Fréchet distances of many resamples of one set of features to one Gaussian.

    The matrix root is computed only once, for the Gaussian.

    Args:
        features: features of the images, (N, F).
        mean, covariance: mean (F,) and covariance (F, F) of the reference.
        resamples: one array (N,) per resample: how often it contains each image.

    Yields:
        The distance of each resample.
    """
    features = check_features("features", features)
    root = covariance_root(covariance)
    centre = features.mean(axis=0)
    features = features - centre
    difference = centre - mean
    projected = features @ root  # (N, F); its covariance is Σ^½ Σ_features Σ^½
    squares = (features**2).sum(axis=1)  # (N,)
    for counts in resamples:
        taken = counts > 0
        weights = counts[taken].astype(np.float64)  # (n,)
        n = weights.sum()
        offset = weights @ features[taken] / n  # from the mean of all images to the mean of this resample
        variance = (weights @ squares[taken] - n * offset @ offset) / (n - 1)
        part = np.sqrt(weights)[:, None] * (projected[taken] - weights @ projected[taken] / n)  # (n, F)
        gram = part.T @ part if len(part) > part.shape[1] else part @ part.T  # both have the same eigenvalues
        distance = ((difference + offset) ** 2).sum() + variance + np.trace(covariance)
        yield max(float(distance - 2 * root_trace(gram / (n - 1))), 0.0)


def fid_infinity(
    features: np.ndarray, mean: np.ndarray, covariance: np.ndarray, num_points: int = 15, seed: int = 0
) -> dict:
    """FID extrapolated to infinitely many samples (arXiv 1911.07023): a line is fitted to FID as a function of 1 / N.

    Args:
        features: features of the samples, (N, F).
        mean, covariance: mean (F,) and covariance (F, F) of the reference.
        num_points: number of random subsets, whose sizes are evenly spaced from a tenth of N to N.
        seed: seed of the subsets.

    Returns:
        "fid_infinity", the value of the line at 1 / N = 0; "standard_error", the standard error of this value; and
        "points", a list of [N, FID].

    Raises:
        ValueError: if there are fewer than 20 images, or fewer than 3 points.
    """
    N = len(features)
    check_count("num_points", num_points)
    if N < 20 or num_points < 3:
        raise ValueError(f"FID is extrapolated from at least 20 images and 3 points, not {N} and {num_points}")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(N / 10, N, num_points).round().astype(int))
    resamples = (np.isin(np.arange(N), rng.choice(N, n, replace=False)).astype(int) for n in sizes)
    distances = list(resampled_frechet_distances(features, mean, covariance, resamples))
    from scipy import stats  # takes a second to import

    line = stats.linregress(1 / sizes, distances)
    return {
        "fid_infinity": float(line.intercept),
        "standard_error": float(line.intercept_stderr),
        "points": [[int(n), distance] for n, distance in zip(sizes, distances, strict=True)],
    }
