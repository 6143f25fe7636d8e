"""Precision, recall, density and coverage: how the nearest neighbours of two sets of features overlap.

N samples and M reference images, F features each. Everything is float64 on the CPU.
"""

import numpy as np

from ..utils.checks import check_count
from .feature_statistics import check_features, check_same_width


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖², (N, M). Distances within rounding error are set to 0, so that duplicates have no distance."""
    norms = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)
    distances = norms - 2 * a @ b.T
    return np.where(distances > 1e-12 * norms, distances, 0)


def neighbour_radii(features: np.ndarray, k: int, block_size: int = 1000) -> np.ndarray:
    """Squared distance of each image to its k-th nearest neighbour, (N,)."""
    radii = np.empty(len(features))
    for start in range(0, len(features), block_size):
        block = slice(start, min(start + block_size, len(features)))
        distances = squared_distances(features[block], features)
        distances[np.arange(len(distances)), np.arange(block.start, block.stop)] = (
            np.inf
        )  # an image is not its own neighbour
        radii[block] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall by nearest neighbours (arXiv 1904.06991).

    The manifold of a set is the union of balls around its images, whose radius is the distance to the k-th nearest
    neighbour within the set. Precision is the share of samples inside the manifold of the reference, recall the share
    of reference images inside the manifold of the samples.

    Args:
        samples, reference: features (N, F) and (M, F).
        k: number of neighbours.

    Returns:
        (precision, recall).

    Raises:
        ValueError: if a side has k images or fewer, or features do not fit or are not finite.
    """
    samples, reference = _centred_pair(samples, reference, k)
    sample_radii, reference_radii = neighbour_radii(samples, k), neighbour_radii(reference, k)
    precise = np.zeros(len(samples), dtype=bool)
    recalled = []
    for start in range(0, len(reference), 1000):
        distances = squared_distances(reference[start : start + 1000], samples)  # (block, N)
        precise |= (distances <= reference_radii[start : start + 1000, None]).any(axis=0)
        recalled.append((distances <= sample_radii).any(axis=1))
    return float(precise.mean()), float(np.concatenate(recalled).mean())


def density_coverage(samples: np.ndarray, reference: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage (arXiv 2002.09797), which single outliers affect less than precision and recall.

    Density is the mean number of balls of the reference in which a sample lies, divided by k; it may exceed 1. Coverage
    is the share of reference images with a sample in their ball.

    Args:
        samples, reference: features (N, F) and (M, F).
        k: number of neighbours.

    Returns:
        (density, coverage).

    Raises:
        ValueError: if a side has k images or fewer, or features do not fit or are not finite.
    """
    samples, reference = _centred_pair(samples, reference, k)
    radii = neighbour_radii(reference, k)
    inside, covered = 0, []
    for start in range(0, len(reference), 1000):
        within = squared_distances(reference[start : start + 1000], samples) <= radii[start : start + 1000, None]
        inside += within.sum()
        covered.append(within.any(axis=1))
    return float(inside / (k * len(samples))), float(np.concatenate(covered).mean())


def _centred_pair(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift both sets so that the reference is centred at 0, where squared distances lose the fewest digits."""
    samples, reference = check_features("samples", samples), check_features("reference", reference)
    check_count("k", k)
    check_same_width(samples, reference)
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} images, not {min(len(samples), len(reference))}")
    centre = reference.mean(axis=0)
    return samples - centre, reference - centre
