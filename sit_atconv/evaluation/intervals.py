"""Confidence intervals: the bootstrap over images, and Student's t over training seeds."""

from collections.abc import Iterator, Sequence

import numpy as np


def bootstrap_resamples(num_images: int, num_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each bootstrap resample contains each image: one array (num_images,) per resample.

    The resamples depend on the arguments only, so that two models that were sampled from the same noise can be compared
    resample by resample.
    """
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)


def bootstrap_interval(estimate: float, resampled: Sequence[float] | np.ndarray, level: float = 0.95) -> list[float]:
    """The percentile interval of bootstrap values, shifted so that their mean equals the estimate.

    The shift removes the bias of the bootstrap: a resample repeats images, so that its covariance has a lower rank and
    its FID is larger than that of the whole set.

    Args:
        estimate: the value for the whole set.
        resampled: the value for each resample.
        level: confidence level.

    Returns:
        The lower and the upper end.
    """
    resampled = np.asarray(resampled)
    tail = (1 - level) / 2
    return [float(q) for q in estimate + np.quantile(resampled, [tail, 1 - tail]) - resampled.mean()]


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> list[float]:
    """Student's t interval for the mean of values (n,), such as paired differences over training seeds.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: if there are fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a confidence interval over seeds needs at least 2 of them, not {len(values)}")
    from scipy import stats  # takes a second to import

    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]
