"""The report of an evaluation: what the scores depend on, notes for its readers, and which reports are comparable."""

import numpy as np

from ..sharing.card import CARD_METRICS
from .extractor import Extractor
from .feature_statistics import FeatureStatistics
from .image_features import ImageFeatures
from .metric_options import MetricOptions
from .scored_images import ReferenceSource, SampleSource

# Reports are comparable if all of these entries are equal.
MUST_AGREE = (
    "extractor",
    "weights_sha256",
    "resize",
    "image_size",
    "reference_sha256",
    "num_reference",
    "num_samples",
    "settings",
)
# Recorded because FID can tell rounded images from unrounded ones (arXiv 2104.11222).
QUANTIZATION = "images are 8-bit, samples rounded to the nearest; resized ones are float32, not rounded"


def describe_scores(
    options: MetricOptions,
    extractor: Extractor,
    sample_source: SampleSource,
    drawn: ImageFeatures,
    real_source: ReferenceSource,
    real: ImageFeatures,
) -> dict:
    """What a report says about its scores besides their values: notes, images, features and settings."""
    bias = bias_of(drawn.statistics["features"], real.statistics["features"], real_source.count)
    return {
        "biased": bool(bias),
        "notes": [
            *bias,
            *real_source.notes,
            *sample_source.notes,
            *notes_on_images(drawn, real, extractor),
            *notes_on_metrics(options, drawn, real),
        ],
        "samples": sample_source.name,
        "samples_sha256": drawn.sha256,
        "num_samples": sample_source.count,
        "reference": real_source.name,
        "reference_sha256": real.sha256,
        "num_reference": real_source.count,
        "image_size": options.image_size,
        "extractor": extractor.name,
        "weights": extractor.weights,
        "weights_sha256": extractor.weights_sha256,
        "resize": extractor.resize,
        "quantization": QUANTIZATION,
        "num_features": len(real.statistics["features"].mean),
        "settings": options.settings(),
    }


def bias_of(drawn: FeatureStatistics, real: FeatureStatistics, num_reference: int | None) -> list[str]:
    """The reasons why the Fréchet distance is biased; empty if it is not."""
    reasons = []
    F = len(real.mean)
    for side, count in (("samples", drawn.n), ("reference images", num_reference)):
        if count is not None and count <= F:  # N images span N − 1 dimensions about their mean
            reasons.append(f"biased: there are no more {side} ({count}) than features ({F})")
    for side, statistics in (("samples", drawn), ("reference images", real)):
        scale = 1e-12 * (statistics.mean @ statistics.mean)
        if np.trace(statistics.covariance) <= scale:
            reasons.append(f"biased: the {side} are all alike")
    return reasons


def notes_on_images(samples: ImageFeatures, reference: ImageFeatures, extractor: Extractor) -> list[str]:
    """What readers should know about the sizes of the images, and whether both sides are the same images."""
    notes = []
    sizes = {}
    for side, images in (("samples", samples), ("reference images", reference)):
        sizes[side] = sorted({shape[:2] for shape in images.shapes})
        if len(sizes[side]) > 1:
            notes.append(f"the {side} have {len(sizes[side])} different sizes; each is resized by itself")
    a, b = sizes.values()
    if len(a) == len(b) == 1 and a != b:
        words = [f"{height}×{width}" for height, width in (a[0], b[0])]
        notes.append(f"samples are {words[0]}, reference images {words[1]}; resize of both: {extractor.resize}")
    if samples.sha256 == reference.sha256:
        notes.append("samples and reference are the same images")
    return notes


def notes_on_metrics(options: MetricOptions, samples: ImageFeatures, reference: ImageFeatures) -> list[str]:
    """Metrics that could not be computed exactly as their options say."""
    if "kid" not in options.names:
        return []
    fewest = min(len(samples.features), len(reference.features))
    if fewest >= options.kid_subset_size:
        return []
    return [f"KID is over subsets of {fewest} images, not {options.kid_subset_size}: there are no more"]


def check_comparable(reports: dict[str, dict]) -> None:
    """Check that the scores of reports, given by name, may stand in one table.

    Raises:
        ValueError: naming the entries that differ.
    """
    (first_name, first), *others = reports.items()
    for name, other in others:
        differing = [key for key in MUST_AGREE if first.get(key) != other.get(key)]
        if differing:
            facts = "; ".join(f"{key}: {first.get(key)!r} and {other.get(key)!r}" for key in differing)
            raise ValueError(
                f"{first_name} and {name} cannot be compared: {facts}; score both in the same way, or take one "
                "of these files away"
            )


def summary(report: dict) -> str:
    """The report in one line, followed by one line for each note."""
    values = [f"{word} {report[name]:.4g}" for name, word in CARD_METRICS.items() if name in report]
    if "fid_interval" in report:
        low, high = report["fid_interval"]
        values[0] += f" [{low:.4g}, {high:.4g}]"
    reference = report["reference"] + (f" ({report['num_reference']})" if report["num_reference"] else "")
    line = (
        f"{', '.join(values)} ({report['extractor']}): {report['num_samples']} samples of {report['samples']} against "
        f"{reference}"
    )
    return "\n".join([line, *(f"  {note}" for note in report["notes"])])
