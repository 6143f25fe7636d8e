"""Open samples and their reference, and check that they can be scored against each other, before any long work."""

from pathlib import Path

import numpy as np
import torch

from ..sharing.folder import is_pipeline_folder
from ..utils.checks import check_pixel_dimensions
from .image_sets import open_images
from .metric_options import MetricOptions
from .metrics import METRICS
from .output_files import SAMPLES_RECORD
from .records import read_record
from .reference_statistics import ReferenceStatistics, load_statistics
from .sampling import image_shape, load_pipeline
from .sampling_dtype import cast_pipeline, resolve_dtype
from .sampling_options import SamplingOptions
from .scored_images import ImageSource, PipelineSource, ReferenceSource, SampleSource


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
        return ReferenceSource(reference, given, None, notes)
    try:
        images = open_images(
            "reference", reference, options.image_size, options.needs_uniform_images, options.max_broken_images
        )
    except ValueError as error:
        if given.mu is None:
            raise
        raise ValueError(
            f"reference={reference!r} holds statistics and no images, and they cannot be used: {lacking}"
        ) from error
    notes = [] if given.mu is None else [f"the reference's own statistics are left out: {lacking}"]
    return ReferenceSource(reference, given, images, notes)


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
            f"num_samples={sampling.num_samples}: {samples!r} is not a pipeline folder; all its images are taken"
        )
    record = read_record(samples)
    if record is not None and not record["complete"]:
        raise ValueError(f"samples={samples!r} is incomplete; run its eval/sample.py command again to fill it in")
    images = open_images(
        "samples", samples, options.image_size, options.needs_uniform_images, options.max_broken_images
    )
    if record is not None and record["num_samples"] != len(images):
        raise ValueError(
            f"samples={samples!r} holds {len(images)} images, but {SAMPLES_RECORD} says {record['num_samples']}; "
            "images were added or removed"
        )
    return ImageSource(samples, images, record, options.max_broken_images)


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
    sampling = resolve_dtype([pipeline], sampling)
    return PipelineSource(folder, cast_pipeline(pipeline, sampling.dtype), sampling, count)


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
