"""The table of metrics: what each one needs, the options that it depends on, and how it is computed.

To add a metric, write it as a function of features in a file of its own, and give it an entry in `METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .frechet import fid_infinity, frechet_distance
from .inception_score import inception_score
from .kernel_distance import kernel_distance
from .neighbours import density_coverage, precision_recall

if TYPE_CHECKING:  # it imports PyTorch, which the names of the metrics do not need
    from .image_features import ImageFeatures


@dataclass(frozen=True)
class Metric:
    """An entry in the table of metrics.

    Attributes:
        compute: (samples, reference, **settings) -> the metric's entries in the report.
        settings: names of the options in `MetricOptions` that the values depend on. They are handed to `compute` and
            `check`, and recorded in the report.
        output: the output of the extractor that the metric reads.
        needs_samples: whether it needs the features of the samples themselves, not only their mean and covariance.
        needs_reference: whether it needs the features of the reference images themselves.
        check: (number of samples, number of images on the smaller side, **settings) -> None; raises ValueError if
            there are too few.
    """

    compute: Callable[..., dict]
    settings: tuple[str, ...] = ()
    output: str = "features"
    needs_samples: bool = False
    needs_reference: bool = False
    check: Callable[..., None] | None = None


def compute_fid(samples: "ImageFeatures", reference: "ImageFeatures") -> dict:
    a, b = samples.statistics["features"], reference.statistics["features"]
    return {"fid": frechet_distance(a.mean, a.covariance, b.mean, b.covariance)}


def compute_sfid(samples: "ImageFeatures", reference: "ImageFeatures") -> dict:
    a, b = samples.statistics["spatial"], reference.statistics["spatial"]
    return {"sfid": frechet_distance(a.mean, a.covariance, b.mean, b.covariance)}


def compute_kid(
    samples: "ImageFeatures", reference: "ImageFeatures", kid_subsets: int, kid_subset_size: int, metric_seed: int
) -> dict:
    mean, std = kernel_distance(samples.features, reference.features, kid_subsets, kid_subset_size, metric_seed)
    return {"kid": mean, "kid_std": std}


def compute_inception_score(samples: "ImageFeatures", reference: "ImageFeatures", splits: int) -> dict:
    mean, std = inception_score(samples.probabilities, splits)
    return {"inception_score": mean, "inception_score_std": std}


def check_inception_score(num_samples: int, fewest: int, splits: int) -> None:
    if num_samples < splits:
        raise ValueError(f"splits={splits} exceeds the {num_samples} samples; choose at most as many")


def compute_precision_recall(samples: "ImageFeatures", reference: "ImageFeatures", neighbours: int) -> dict:
    precision, recall = precision_recall(samples.features, reference.features, neighbours)
    return {"precision": precision, "recall": recall}


def check_precision_recall(num_samples: int, fewest: int, neighbours: int) -> None:
    if fewest <= neighbours:
        raise ValueError(
            f"neighbours={neighbours}: precision_recall needs more than {neighbours} images on both sides, not {fewest}"
        )


def compute_density_coverage(samples: "ImageFeatures", reference: "ImageFeatures", density_neighbours: int) -> dict:
    density, coverage = density_coverage(samples.features, reference.features, density_neighbours)
    return {"density": density, "coverage": coverage}


def check_density_coverage(num_samples: int, fewest: int, density_neighbours: int) -> None:
    if fewest <= density_neighbours:
        raise ValueError(
            f"density_neighbours={density_neighbours}: density_coverage needs more than {density_neighbours} images on "
            f"both sides, not {fewest}"
        )


def compute_fid_infinity(samples: "ImageFeatures", reference: "ImageFeatures", metric_seed: int) -> dict:
    real = reference.statistics["features"]
    result = fid_infinity(samples.features, real.mean, real.covariance, seed=metric_seed)
    return {
        "fid_infinity": result["fid_infinity"],
        "fid_infinity_standard_error": result["standard_error"],
        "fid_by_num_samples": result["points"],
    }


def check_fid_infinity(num_samples: int, fewest: int, metric_seed: int) -> None:
    if num_samples < 20:
        raise ValueError(f"fid_infinity needs at least 20 samples, not {num_samples}")


METRICS = {
    "fid": Metric(compute_fid),
    "sfid": Metric(compute_sfid, output="spatial"),
    "kid": Metric(
        compute_kid, ("kid_subsets", "kid_subset_size", "metric_seed"), needs_samples=True, needs_reference=True
    ),
    "inception_score": Metric(
        compute_inception_score, ("splits",), output="probabilities", check=check_inception_score
    ),
    "precision_recall": Metric(
        compute_precision_recall,
        ("neighbours",),
        needs_samples=True,
        needs_reference=True,
        check=check_precision_recall,
    ),
    "density_coverage": Metric(
        compute_density_coverage,
        ("density_neighbours",),
        needs_samples=True,
        needs_reference=True,
        check=check_density_coverage,
    ),
    "fid_infinity": Metric(compute_fid_infinity, ("metric_seed",), needs_samples=True, check=check_fid_infinity),
}
