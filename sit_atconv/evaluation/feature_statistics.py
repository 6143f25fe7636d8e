"""Features of images as arrays: checks, and their mean and covariance, accumulated batch by batch.

N images, F features each; B images in one batch. Everything is float64 on the CPU.
"""

import numpy as np

ROUNDING = 1e-5  # relative to the trace of a covariance; float32 rounds to 6e-8


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, accumulated in float64.

    The scatter matrix is accumulated about the running mean (Chan et al., 1979): a plain sum of outer products would
    lose digits if the features are far from zero.

    Attributes:
        n: number of images.
        mean: mean of the features, (F,).
        scatter: sum of (x − mean)(x − mean)ᵀ, (F, F).
    """

    def __init__(self):
        self.n = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    @classmethod
    def from_moments(cls, mean: np.ndarray, covariance: np.ndarray, n: int) -> "FeatureStatistics":
        """Build the statistics of `n` images from their mean (F,) and covariance (F, F)."""
        statistics = cls()
        statistics.n, statistics.mean, statistics.scatter = n, mean, covariance * (n - 1)
        return statistics

    def update(self, features: np.ndarray) -> None:
        """Add the features (B, F) of a batch.

        Raises:
            ValueError: if they have another shape, or are not finite.
        """
        # float64: the covariance of FID loses digits in float32
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2:
            raise ValueError(f"features have shape {features.shape}, but must be (images, features)")
        if not (finite := np.isfinite(features).all(axis=1)).all():
            i = self.n + int(np.argmin(finite))
            raise ValueError(f"the features of image {i} are not finite; check that image and the extractor's weights")
        if not len(features):
            return
        mean = features.mean(axis=0)
        rows = features - mean
        if self.n == 0:
            self.n, self.mean, self.scatter = len(features), mean, rows.T @ rows
            return
        if self.mean.shape != mean.shape:
            raise ValueError(f"{len(self.mean)} and {len(mean)} features per image cannot be merged")
        n = self.n + len(features)
        delta = mean - self.mean
        rows = np.vstack([rows, delta * np.sqrt(self.n * len(features) / n)])  # the last row moves both to one mean
        self.n, self.mean = n, self.mean + delta * (len(features) / n)
        self.scatter += rows.T @ rows

    @property
    def covariance(self) -> np.ndarray:
        """The covariance (F, F), with the divisor n − 1 as in np.cov.

        Raises:
            ValueError: if there are fewer than two images.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        return self.scatter / (self.n - 1)


def check_covariance(field: str, covariance: np.ndarray) -> None:
    """Check that a matrix (F, F) of finite numbers can be a covariance, up to rounding in float32.

    Args:
        field: name of the matrix, for the message.
        covariance: the matrix.

    Raises:
        ValueError: if it is not symmetric, or has a negative eigenvalue: distances to it would mean nothing.
    """
    if np.abs(covariance - covariance.T).max() > ROUNDING * np.abs(covariance).max():
        raise ValueError(f"{field} is not symmetric, so it is not a covariance; make the statistics again")
    slack = max(ROUNDING * float(np.trace(covariance)), np.finfo(np.float64).tiny)
    try:
        np.linalg.cholesky(covariance + slack * np.eye(len(covariance)))  # much faster than the eigenvalues
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(covariance)[0]
        raise ValueError(
            f"{field} has the negative eigenvalue {lowest:.4g}, so it is not a covariance; make the statistics again"
        ) from None


def check_features(field: str, features: np.ndarray) -> np.ndarray:
    """Convert features (N, F) to float64.

    Args:
        field: name of the argument, for the message.
        features: the features.

    Raises:
        ValueError: if they have another shape, or are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{field} have shape {features.shape}, but must be (images, features)")
    if not (finite := np.isfinite(features).all(axis=1)).all():
        raise ValueError(f"{field}: the values of image {int(np.argmin(finite))} are not finite")
    return features


def check_same_width(samples: np.ndarray, reference: np.ndarray) -> None:
    """Raise ValueError if samples and reference have different numbers of features."""
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(f"samples have {samples.shape[1]} features, the reference {reference.shape[1]}")
