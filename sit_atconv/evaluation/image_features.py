"""Features of a set of images: extracted batch by batch, or taken from a file of statistics.

B images of H × W pixels and C channels, N in all; F features each; images are uint8 (H, W, C).
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data import BrokenImageError
from ..utils.hashing import file_sha256
from .extractor import Extractor
from .feature_statistics import FeatureStatistics
from .image_sets import ImageSet, ImagesHash, leave_out
from .reference_statistics import ReferenceStatistics


@dataclass
class ImageFeatures:
    """What is known about a set of images after the extractor has seen them.

    Attributes:
        statistics: mean and covariance of the "features" and, if requested, of the "spatial" features.
        kept: "features" (N, F) float32 and "probabilities" (N, K) of K classes, if they were kept.
        sha256: the hash of the images.
        shapes: the number of images of each (H, W, C), before they were resized.
    """

    statistics: dict[str, FeatureStatistics]
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    sha256: str = ""
    shapes: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def features(self) -> np.ndarray:
        """(N, F) float32, which must have been kept."""
        return self.kept["features"]

    @property
    def probabilities(self) -> np.ndarray:
        """(N, K), which must have been kept."""
        return self.kept["probabilities"]


@torch.no_grad()
def extract_features(
    batches: Iterable[Sequence[np.ndarray]],
    total: int,
    extractor: Extractor,
    pool: ThreadPoolExecutor,
    side: str,
    keep: bool,
) -> ImageFeatures:
    """Run the extractor over images, summing float64 statistics as the batches come.

    Args:
        batches: batches of images (H, W, C) uint8.
        total: the number of images, for the progress bar.
        extractor: what computes the features.
        pool: threads that resize images.
        side: "samples" or "reference", for the progress bar and messages.
        keep: whether the features themselves are kept. Probabilities always are.

    Raises:
        ValueError: if features are not finite.
    """
    statistics: dict[str, FeatureStatistics] = {}
    kept: dict[str, list[np.ndarray]] = {}
    shapes: dict[tuple[int, ...], int] = {}
    digest = ImagesHash()
    with tqdm(total=total, desc=side, unit="image", dynamic_ncols=True) as progress:
        for batch in batches:
            for image in batch:
                digest.update(image)
                shapes[image.shape] = shapes.get(image.shape, 0) + 1
            prepared = torch.stack(list(pool.map(extractor.prepare, batch)))
            for name, output in extractor.embed(prepared).items():
                values = output.cpu().numpy()
                if name != "probabilities":
                    try:
                        statistics.setdefault(name, FeatureStatistics()).update(values)
                    except ValueError as error:
                        raise ValueError(f"{side}: {error}") from None
                if name == "probabilities" or (name == "features" and keep):
                    kept.setdefault(name, []).append(values)
            progress.update(len(batch))
    whole = {name: np.concatenate(parts) for name, parts in kept.items()}
    return ImageFeatures(statistics, whole, digest.hexdigest(), shapes)


def read_batches(
    images: ImageSet, batch_size: int, pool: ThreadPoolExecutor, max_broken_images: int = 0
) -> Iterator[list[np.ndarray]]:
    """The images of a set in lists of up to `batch_size`, read by the threads of a pool.

    Those that cannot be read are left out, and listed in `images.broken`.

    Raises:
        BrokenImageError: if there are more of them than `max_broken_images`.
    """

    def read(index: int) -> np.ndarray | BrokenImageError:
        try:
            return images.image(index)
        except BrokenImageError as error:
            return error

    for start in range(0, len(images), batch_size):
        batch = []
        for image in pool.map(read, range(start, min(start + batch_size, len(images)))):
            if isinstance(image, BrokenImageError):
                leave_out(image, images.broken, max_broken_images)
            else:
                batch.append(image)
        if batch:
            yield batch


def from_statistics(given: ReferenceStatistics, file: str) -> ImageFeatures:
    """A file's statistics, as if its images had just been seen."""
    statistics = {}
    for name, mean, covariance in (("features", given.mu, given.sigma), ("spatial", given.mu_s, given.sigma_s)):
        if mean is not None and covariance is not None:
            statistics[name] = FeatureStatistics.from_moments(mean, covariance, given.record.get("num_images") or 2)
    kept = {} if given.features is None else {"features": given.features}
    return ImageFeatures(statistics, kept, given.record.get("sha256") or f"file {file_sha256(Path(file))}")


def to_statistics(images: ImageFeatures, record: dict) -> ReferenceStatistics:
    """What a file is to hold of these images.

    Args:
        images: their features.
        record: how the features were made.
    """
    features, spatial = images.statistics["features"], images.statistics.get("spatial")
    return ReferenceStatistics(
        features.mean,
        features.covariance,
        None if spatial is None else spatial.mean,
        None if spatial is None else spatial.covariance,
        images.kept.get("features"),
        record,
    )
