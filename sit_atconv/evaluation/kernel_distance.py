"""Kernel Inception Distance (KID): the maximum mean discrepancy of two sets of features.

N samples and M reference images, F features each. Everything is float64 on the CPU.
"""

import numpy as np

from ..utils.checks import check_count
from .feature_statistics import check_features, check_same_width


def kernel_distance(
    samples: np.ndarray, reference: np.ndarray, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """KID (arXiv 1801.01401): an unbiased estimate of the squared maximum mean discrepancy, kernel (x·y / F + 1)³.

    It is averaged over random subsets, which are drawn as clean-fid draws them after `np.random.seed(seed)`, so that
    both give the same value.

    Args:
        samples, reference: features (N, F) and (M, F).
        num_subsets: number of subsets.
        subset_size: number of images in each subset; at most as many as the smaller side has.
        seed: seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets. The deviation is None if they do not differ: if there is one
        alone, or if each holds all images of both sides.

    Raises:
        ValueError: if there are fewer than 2 images, or features do not fit or are not finite.
    """
    samples, reference = check_features("samples", samples), check_features("reference", reference)
    check_count("num_subsets", num_subsets)
    check_same_width(samples, reference)
    F = samples.shape[1]
    m = min(len(samples), len(reference), subset_size)
    if m < 2:
        raise ValueError(f"KID needs at least 2 images on both sides and in a subset, not {m}")
    rng = np.random.RandomState(seed)  # the generator behind np.random.seed
    values = []
    for _ in range(num_subsets):
        x = reference[rng.choice(len(reference), m, replace=False)]
        y = samples[rng.choice(len(samples), m, replace=False)]
        within = (x @ x.T / F + 1) ** 3 + (y @ y.T / F + 1) ** 3
        between = (x @ y.T / F + 1) ** 3
        values.append((within.sum() - np.trace(within)) / (m * (m - 1)) - 2 * between.mean())
    differ = num_subsets > 1 and m < max(len(samples), len(reference))
    return float(np.mean(values)), float(np.std(values)) if differ else None
