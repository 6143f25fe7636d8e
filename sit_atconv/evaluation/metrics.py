"""Distances between sets of images, as functions of their features: FID, KID, Inception Score, precision, recall…

Everything is float64 and on the CPU. Features are arrays (N, F): N images, F features. FID and sFID need their mean and
covariance alone, which `FeatureStatistics` sums as they come; the others need the features themselves.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy import stats

from ..utils.checks import check_count


class FeatureStatistics:
    """Mean and covariance of features that arrive in parts, in float64.

    The scatter matrix is summed about the running mean (Chan et al., 1979), so that features far from zero lose no
    digits, as they would in a plain sum of outer products.

    Attributes:
        n: number of feature vectors.
        mean: (F,).
        scatter: (F, F), sum of (x − mean)(x − mean)ᵀ.
    """

    def __init__(self):
        self.n = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    @classmethod
    def from_moments(cls, mean: np.ndarray, covariance: np.ndarray, n: int) -> "FeatureStatistics":
        """Those of `n` images with this mean (F,) and covariance (F, F)."""
        statistics = cls()
        statistics.n, statistics.mean, statistics.scatter = n, mean, covariance * (n - 1)
        return statistics

    def update(self, features: np.ndarray) -> None:
        """Add features (B, F).

        Raises:
            ValueError: for features of another shape, or that are not finite.
        """
        # float64: the FID's covariance loses digits in float32
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2:
            raise ValueError(f"features have shape {features.shape}, but must be (images, features)")
        if not (finite := np.isfinite(features).all(axis=1)).all():
            i = self.n + int(np.argmin(finite))
            raise ValueError(f"the features of image {i} are not finite; check that image and the extractor's weights")
        if not len(features):
            return
        part = FeatureStatistics()
        part.n = len(features)
        part.mean = features.mean(axis=0)
        centred = features - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add everything that `other` has seen.

        Raises:
            ValueError: where the numbers of features differ.
        """
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean, self.scatter = other.n, other.mean.copy(), other.scatter.copy()
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"{len(self.mean)} and {len(other.mean)} features per image cannot be merged")
        n = self.n + other.n
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.n / n)
        self.scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.n * other.n / n)
        self.n = n

    @property
    def covariance(self) -> np.ndarray:
        """(F, F), divided by n − 1 as np.cov does.

        Raises:
            ValueError: for fewer than two images.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        return self.scatter / (self.n - 1)


def covariance_root(covariance: np.ndarray) -> np.ndarray:
    """Σ^½ of a symmetric positive semi-definite matrix (F, F), singular ones included."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T  # rounding may take a zero below 0


def root_trace(matrix: np.ndarray) -> float:
    """Tr(M^½) of a symmetric positive semi-definite matrix."""
    return float(np.sqrt(np.linalg.eigvalsh((matrix + matrix.T) / 2).clip(min=0)).sum())


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), the squared Wasserstein-2 distance of two Gaussians (arXiv 1706.08500).

    Σ₁Σ₂ has the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½, whose roots are summed: no general matrix root is taken,
    and singular covariances need no offset.

    Args:
        mean_1, mean_2: (F,).
        covariance_1, covariance_2: (F, F), symmetric and positive semi-definite.

    Raises:
        ValueError: for numbers that are not finite, or shapes that do not fit.
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
    root = covariance_root(covariance_1)
    difference = mean_1 - mean_2
    distance = difference @ difference + np.trace(covariance_1) + np.trace(covariance_2)
    distance -= 2 * root_trace(root @ covariance_2 @ root)
    return max(float(distance), 0.0)  # of equal Gaussians, rounding leaves either sign


def resampled_frechet_distances(
    features: np.ndarray, mean: np.ndarray, covariance: np.ndarray, resamples: Iterable[np.ndarray]
) -> Iterator[float]:
    """Fréchet distances of many resamples of one set of features to one Gaussian, whose matrix root is taken once.

    Args:
        features: (N, F).
        mean, covariance: of the reference, (F,) and (F, F).
        resamples: how often each image is taken, (N,) whole numbers each.

    Yields:
        One distance a resample.
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
        offset = weights @ features[taken] / n  # of this resample's mean from that of all
        variance = (weights @ squares[taken] - n * offset @ offset) / (n - 1)
        part = np.sqrt(weights)[:, None] * (projected[taken] - weights @ projected[taken] / n)  # (n, F)
        gram = part.T @ part if len(part) > part.shape[1] else part @ part.T  # both have the same eigenvalues
        distance = ((difference + offset) ** 2).sum() + variance + np.trace(covariance)
        yield max(float(distance - 2 * root_trace(gram / (n - 1))), 0.0)


def bootstrap_resamples(num_images: int, num_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is drawn in each bootstrap resample, (N,), a function of the arguments alone.

    Two models sampled from the same noise can therefore be compared resample by resample.
    """
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)


def bootstrap_interval(estimate: float, resampled: np.ndarray, level: float = 0.95) -> list[float]:
    """The percentile interval of bootstrap values, moved so that their mean lies on the estimate.

    The move takes away the bootstrap's own bias: a resample repeats images, so its covariance has a lower rank, and its
    FID is larger than that of the whole set.
    """
    resampled = np.asarray(resampled)
    tail = (1 - level) / 2
    return [float(q) for q in estimate + np.quantile(resampled, [tail, 1 - tail]) - resampled.mean()]


def mean_interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """Student's interval for the mean of values (n,), such as paired differences over training seeds.

    Raises:
        ValueError: for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a confidence interval over seeds needs at least 2 of them, not {len(values)}")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def fid_infinity(
    features: np.ndarray, mean: np.ndarray, covariance: np.ndarray, num_points: int = 15, seed: int = 0
) -> dict:
    """FID extrapolated to infinitely many samples (arXiv 1911.07023): a line through FID against 1 / N.

    Args:
        features: (N, F) of the samples.
        mean, covariance: of the reference.
        num_points: sizes of random subsets, evenly from a tenth of N to N.
        seed: of the subsets.

    Returns:
        "fid_infinity", where the line meets 1 / N = 0; "standard_error" of that; "points": [N, FID] each.

    Raises:
        ValueError: for fewer than 20 images, or fewer than 3 points.
    """
    N = len(features)
    check_count("num_points", num_points)
    if N < 20 or num_points < 3:
        raise ValueError(f"FID is extrapolated from at least 20 images and 3 points, not {N} and {num_points}")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(N / 10, N, num_points).round().astype(int))
    resamples = (np.isin(np.arange(N), rng.choice(N, n, replace=False)).astype(int) for n in sizes)
    distances = list(resampled_frechet_distances(features, mean, covariance, resamples))
    line = stats.linregress(1 / sizes, distances)
    return {
        "fid_infinity": float(line.intercept),
        "standard_error": float(line.intercept_stderr),
        "points": [[int(n), distance] for n, distance in zip(sizes, distances, strict=True)],
    }


def kernel_distance(
    samples: np.ndarray, reference: np.ndarray, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID (arXiv 1801.01401): the squared maximum mean discrepancy under the kernel (x·y / F + 1)³, without bias.

    It is the mean over random subsets. Subsets are drawn as clean-fid draws them after `np.random.seed(seed)`, so that
    the values are the same.

    Args:
        samples, reference: features (N, F) and (M, F).
        num_subsets: to be averaged.
        subset_size: images of each; all of the smaller side where that has fewer.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets.
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
    return float(np.mean(values)), float(np.std(values))


def inception_score(probabilities: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) (arXiv 1606.03498), over consecutive parts of the images.

    Args:
        probabilities: (N, K) of K classes, rows that sum to 1.
        num_splits: parts; 10 of 5,000 images each in the literature.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: for numbers that are no probabilities, or fewer images than parts.
    """
    p = check_features("probabilities", probabilities)
    if (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must be at least 0 and sum to 1 for each image")
    if len(p) < num_splits:
        raise ValueError(f"num_splits={num_splits} exceeds the {len(p)} images; choose at most as many")
    scores = []
    for part in np.array_split(p, num_splits):
        marginal = part.mean(axis=0, keepdims=True)
        # 0 · log 0 is 0
        divergence = np.where(part > 0, part * (np.log(part.clip(1e-300)) - np.log(marginal.clip(1e-300))), 0).sum(1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖², (N, M). Differences lost in rounding are 0, so that duplicates lie on each other."""
    norms = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)
    distances = norms - 2 * a @ b.T
    return np.where(distances > 1e-12 * norms, distances, 0)


def neighbour_radii(features: np.ndarray, k: int, block_size: int = 1000) -> np.ndarray:
    """Squared distance of each image to its k-th nearest other one, (N,)."""
    radii = np.empty(len(features))
    for start in range(0, len(features), block_size):
        block = slice(start, min(start + block_size, len(features)))
        distances = squared_distances(features[block], features)
        distances[np.arange(len(distances)), np.arange(block.start, block.stop)] = np.inf  # not its own neighbour
        radii[block] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall by nearest neighbours (arXiv 1904.06991).

    A set's manifold is the union of balls around its images, each as wide as the distance to the k-th neighbour within
    the set. Precision is the share of samples inside the reference's manifold, recall the reverse.

    Raises:
        ValueError: for k or fewer images on a side, or features that are not finite.
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
    """Density and coverage (arXiv 2002.09797): precision and recall that single outliers do not spoil.

    Density counts in how many of the reference's balls a sample lies, over k; it may exceed 1. Coverage is the share of
    reference images with a sample in their ball.

    Raises:
        ValueError: for k or fewer images on a side, or features that are not finite.
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
    """Both sets about one centre, where squared distances lose the fewest digits."""
    samples, reference = check_features("samples", samples), check_features("reference", reference)
    check_count("k", k)
    check_same_width(samples, reference)
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} images, not {min(len(samples), len(reference))}")
    centre = reference.mean(axis=0)
    return samples - centre, reference - centre


def check_features(field: str, features: np.ndarray) -> np.ndarray:
    """Features (N, F) as float64.

    Raises:
        ValueError: for another shape, or numbers that are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{field} have shape {features.shape}, but must be (images, features)")
    if not (finite := np.isfinite(features).all(axis=1)).all():
        raise ValueError(f"{field}: those of image {int(np.argmin(finite))} are not finite")
    return features


def check_same_width(samples: np.ndarray, reference: np.ndarray) -> None:
    """Raise ValueError where the two have different numbers of features."""
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(f"samples have {samples.shape[1]} features, the reference {reference.shape[1]}")
