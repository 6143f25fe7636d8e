"""Where samples and their reference come from: a pipeline, images, or a file of statistics.

B images of H × W pixels and C channels; images are uint8 (H, W, C).
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from ..pipelines.pipeline_sit import SiTPipeline
from ..sharing.folder import is_pipeline_folder
from ..utils.checks import check_pixel_dimensions
from .image_features import read_batches
from .image_sets import ImageSet, open_images
from .metric_options import MetricOptions
from .metrics import METRICS
from .records import SAMPLES_RECORD, describe_pipeline, folder_sha256, read_record
from .reference_statistics import ReferenceStatistics, load_statistics
from .sampling import SamplingOptions, counting_rows, draw_images, image_shape, load_pipeline


@dataclass
class ReferenceSource:
    """A reference: real images, or the statistics of a file.

    Attributes:
        name: as on the command line.
        statistics: the statistics of its file; empty if it has none.
        images: the images, which are read if the statistics are not enough; otherwise None.
        count: the number of images; None if a file of statistics does not say it.
        own_notes: notes on the choice between images and statistics.
    """

    name: str
    statistics: ReferenceStatistics
    images: ImageSet | None
    count: int | None
    own_notes: list[str]

    @property
    def notes(self) -> list[str]:
        """Its own notes and those on its images, which are complete once the images have been read."""
        return [*self.own_notes, *([] if self.images is None else self.images.notes)]


@dataclass
class ImageSource:
    """Samples that exist as images.

    Attributes:
        name: as on the command line.
        images: the images.
        record: what eval/sample.py recorded about them; None if it did not make them.
    """

    name: str
    images: ImageSet
    record: dict | None

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C), if the images were opened as uniform ones."""
        return self.images.shape

    @property
    def notes(self) -> list[str]:
        """Notes on the images, which are complete once they have been read."""
        return self.images.notes

    def batches(self, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[Sequence[np.ndarray]]:
        """The images in batches of `batch_size`."""
        return read_batches(self.images, batch_size, pool)

    def describe(self, environment: dict) -> dict:
        """What a report says about how the samples were made.

        Args:
            environment: the environment of the evaluation; that of the sampling goes to an entry of its own.
        """
        if self.record is None:
            return {}
        about_files = {"complete", "num_samples", "command", *environment}
        described = {key: value for key, value in self.record.items() if key not in about_files}
        return {**described, "sampling": {key: self.record.get(key) for key in ("command", *environment)}}


@dataclass
class PipelineSource:
    """Samples that a pipeline draws while they are scored.

    Attributes:
        name: the pipeline folder, as on the command line.
        pipeline: the pipeline, with the sampler asked for.
        sampling: how it is sampled.
        count: the number of samples.
        costs: network calls and seconds per image, once all samples have been drawn.
    """

    name: str
    pipeline: SiTPipeline
    sampling: SamplingOptions
    count: int
    costs: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return image_shape(self.pipeline)

    def batches(self, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[Sequence[np.ndarray]]:
        """The samples, (B, H, W, C) uint8, in batches of the sampling options."""
        seconds, step = 0.0, self.sampling.batch_size
        with counting_rows(self.pipeline.transformer) as rows:
            for start in range(0, self.count, step):
                began = time.perf_counter()
                batch = draw_images(self.pipeline, range(start, min(start + step, self.count)), self.sampling)
                seconds += time.perf_counter() - began
                yield list(batch)
        self.costs["network_calls_per_image"] = rows[0] / self.count
        self.costs["seconds_per_image"] = seconds / self.count

    def describe(self, environment: dict) -> dict:
        """What a report says about how the samples were made."""
        return {
            "model_sha256": folder_sha256(self.name),
            **self.sampling.record(),
            "num_samples": self.count,
            **describe_pipeline(self.pipeline),
            **self.costs,
        }


SampleSource: TypeAlias = ImageSource | PipelineSource


def check_folders(samples: str, reference: str) -> None:
    """Check that samples and reference are apart, and hold nothing but the images.

    Raises:
        ValueError: if both are the same, one lies within the other, or one holds a pipeline or samples in a sub-folder.
    """
    paths = [Path(name).resolve() for name in (samples, reference)]
    if samples == reference or (paths[0].exists() and paths[0] == paths[1]):
        raise ValueError(
            f"samples={samples!r} and reference={reference!r} are the same; name other real images as reference"
        )
    if all(path.is_dir() for path in paths) and (paths[0] in paths[1].parents or paths[1] in paths[0].parents):
        raise ValueError(
            f"samples={samples!r} and reference={reference!r}: one holds the other, and folders are searched with all "
            "that is in them; name two that are apart"
        )
    for side, name in (("samples", samples), ("reference", reference)):
        if is_pipeline_folder(name):
            continue
        for inner in ("*/model_index.json", f"*/{SAMPLES_RECORD}"):
            if found := sorted(Path(name).glob(inner)) if Path(name).is_dir() else []:
                raise ValueError(
                    f"{side}={name!r} holds {found[0].parent.name}, a pipeline or its samples; name the folder of the "
                    "images alone, or the pipeline's"
                )


def open_reference(reference: str, options: MetricOptions) -> ReferenceSource:
    """Open a reference; its statistics are preferred to its images if they hold all that the metrics need.

    Raises:
        ValueError: if it is not real images, or its statistics do not fit the options.
    """
    if is_pipeline_folder(reference) or read_record(reference) is not None:
        raise ValueError(
            f"reference={reference!r} holds generated samples, or the pipeline that makes them; were samples and "
            "reference swapped?"
        )
    given = ReferenceStatistics()
    if Path(reference).suffix == ".npz" and Path(reference).is_file():
        given = load_statistics(reference, options.reference_extractor)
    if options.reference_extractor is not None and given.mu is None:
        raise ValueError(
            f"reference_extractor={options.reference_extractor!r}: {reference!r} holds no statistics; leave it out"
        )
    lacking = why_not_enough(given, options)
    if lacking is None:
        notes = []
        if given.record.get("assumed"):
            notes = ["the reference's statistics are assumed to be ADM's: they do not say what made them"]
        return ReferenceSource(reference, given, None, given.record.get("num_images"), notes)
    try:
        images = open_images("reference", reference, options.image_size, options.needs_uniform_images)
    except ValueError as error:
        if given.mu is None:
            raise
        raise ValueError(
            f"reference={reference!r} holds statistics and no images, and they cannot be used: {lacking}"
        ) from error
    notes = [] if given.mu is None else [f"the reference's own statistics are left out: {lacking}"]
    return ReferenceSource(reference, given, images, len(images), notes)


def why_not_enough(given: ReferenceStatistics, options: MetricOptions) -> str | None:
    """The reason why a file's statistics cannot be used with these options; None if they can."""
    if given.mu is None:
        return "it holds no statistics"
    if given.record["extractor"] is None:
        return "it does not say which extractor made it; if you know it, name it with --reference_extractor"
    if given.record["extractor"] != options.extractor:
        return f"they are of --extractor {given.record['extractor']}, not {options.extractor}"
    if "image_size" in given.record and given.record["image_size"] != options.image_size:
        return f"they are of image_size={given.record['image_size']}, not {options.image_size}"
    if "sfid" in options.names and given.mu_s is None:
        return "sfid needs spatial statistics (mu_s, sigma_s), which it does not hold"
    wanting = [name for name in options.names if METRICS[name].needs_reference]
    if wanting and given.features is None:
        return f"{', '.join(wanting)} need features, which it does not hold"
    return None


def open_samples(
    samples: str,
    options: MetricOptions,
    sampling: SamplingOptions,
    device: torch.device,
    num_reference: int | None,
) -> SampleSource:
    """Open a pipeline or images to be scored.

    Raises:
        ValueError: if images are missing, or the options do not fit.
    """
    if is_pipeline_folder(samples):
        return open_pipeline(samples, options, sampling, device, num_reference)
    if sampling.num_samples is not None:
        raise ValueError(
            f"num_samples={sampling.num_samples}: {samples!r} is no pipeline folder; all its images are taken"
        )
    record = read_record(samples)
    if record is not None and not record["complete"]:
        raise ValueError(f"samples={samples!r} is incomplete; run its eval/sample.py command again to fill it in")
    images = open_images("samples", samples, options.image_size, options.needs_uniform_images)
    if record is not None and record["num_samples"] != len(images):
        raise ValueError(
            f"samples={samples!r} holds {len(images)} images, but {SAMPLES_RECORD} says {record['num_samples']}; "
            "images were added or removed"
        )
    return ImageSource(samples, images, record)


def open_pipeline(
    folder: str, options: MetricOptions, sampling: SamplingOptions, device: torch.device, num_reference: int | None
) -> PipelineSource:
    """Load a pipeline to be sampled, by default as many times as there are reference images."""
    pipeline = sampling.configure(load_pipeline(folder, device))
    sampling = sampling.resolve(pipeline)
    width = image_shape(pipeline)[0]
    if options.image_size not in (None, width):
        raise ValueError(f"image_size={options.image_size}: the images of {folder} are {width} pixels wide")
    count = sampling.num_samples or num_reference
    if count is None:
        raise ValueError("num_samples must be given: the reference does not say how many images it was made of")
    return PipelineSource(folder, pipeline, sampling, count)


def check_sources(options: MetricOptions, samples: SampleSource, reference: ReferenceSource) -> None:
    """Check that there are enough images for each metric, and that images which are not resized have the same shape.

    Raises:
        ValueError: naming the side or the option.
    """
    counts = [samples.count] if reference.count is None else [samples.count, reference.count]
    for side, name, count in zip(("samples", "reference"), (samples.name, reference.name), counts, strict=False):
        if count < 2:
            raise ValueError(f"{side}={name!r}: a covariance needs at least 2 images, not {count}")
    for name in options.names:
        check = METRICS[name].check
        if check is not None:
            check(samples.count, min(counts), **options.settings_of(name))
    if options.needs_uniform_images:
        check_shapes(options, samples, reference)


def check_shapes(options: MetricOptions, samples: SampleSource, reference: ReferenceSource) -> None:
    """Check that samples and reference, which are not resized, have the same shape.

    Raises:
        ValueError: if they differ, or are too large to be compared pixel by pixel.
    """
    if options.extractor == "pixels":
        check_pixel_dimensions(samples.shape)
        F = int(np.prod(samples.shape))
        if reference.images is None and reference.statistics.mu is not None and F != len(reference.statistics.mu):
            raise ValueError(
                f"samples have {F} pixel values, the reference's statistics {len(reference.statistics.mu)}; give "
                "samples of the size that the statistics were made with"
            )
    if reference.images is not None and samples.shape != reference.images.shape:
        shapes = ["×".join(map(str, shape)) for shape in (samples.shape, reference.images.shape)]
        raise ValueError(
            f"samples are {shapes[0]} (height × width × channels), reference images {shapes[1]}; give --image_size "
            "for images of another size, or an --extractor that takes all: inception or timm:NAME"
        )
