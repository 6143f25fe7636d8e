"""Confidence intervals: the bootstrap over images, and Student's t over training seeds."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats


def bootstrap_resamples(num_images: int, num_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is drawn in each bootstrap resample, (N,), a function of the arguments alone.

    Two models sampled from the same noise can therefore be compared resample by resample.
    """
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)


def bootstrap_interval(estimate: float, resampled: Sequence[float] | np.ndarray, level: float = 0.95) -> list[float]:
    """The percentile interval of bootstrap values, moved so that their mean lies on the estimate.

    The move takes away the bootstrap's own bias: a resample repeats images, so its covariance has a lower rank, and its
    FID is larger than that of the whole set.
    """
    resampled = np.asarray(resampled)
    tail = (1 - level) / 2
    return [float(q) for q in estimate + np.quantile(resampled, [tail, 1 - tail]) - resampled.mean()]


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> list[float]:
    """Student's interval for the mean of values (n,), such as paired differences over training seeds.

    Raises:
        ValueError: for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a confidence interval over seeds needs at least 2 of them, not {len(values)}")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]
