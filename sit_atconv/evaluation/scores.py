"""Score samples against a reference: one report with the requested metrics and everything that they depend on."""

from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from ..utils.environment import describe_environment, pick_device
from ..utils.files import check_new_file
from .extractor import Extractor
from .features import build_extractor
from .frechet import resampled_frechet_distances
from .image_features import ImageFeatures, extract_features, from_statistics, read_batches, to_statistics
from .intervals import bootstrap_interval, bootstrap_resamples
from .metric_options import MetricOptions
from .metrics import METRICS
from .open_sources import check_folders, check_sources, open_reference, open_samples
from .reference_statistics import save_statistics
from .sampling_options import SamplingOptions
from .score_report import describe_scores
from .scored_images import ReferenceSource


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
        reference: real images, in the same forms, or a .npz file of statistics (from this toolkit or ADM).
        options: what is measured. If None, FID with Inception's features.
        sampling: how a pipeline is sampled. If None, with the default options.
        device: device of the pipeline and the extractor, such as cpu or cuda; "auto" is the accelerator if there is
            one.
        statistics_file: a new .npz file for the statistics of the reference, which can be the `reference` later.

    Returns:
        The report. "biased" says that one side has no more images than there are features, or no spread: its covariance
        is singular, and the distance is too large to be compared with others. "notes" are for readers of the scores.

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
        raise ValueError(f"save_statistics={statistics_file!r}: {reference!r} holds statistics; leave it out")
    sample_source = open_samples(samples, options, sampling, picked_device, real_source.count)
    check_sources(options, sample_source, real_source)
    extractor = build_extractor(options.extractor, options.weights, picked_device, options.outputs)
    check_weights_agree(real_source, extractor)
    with ThreadPoolExecutor(options.num_workers) as pool:
        real = reference_features(real_source, options, extractor, pool)
        batches = sample_source.batches(options.extractor_batch_size, pool)
        drawn = extract_features(batches, sample_source.count, extractor, pool, "samples", options.keeps_samples)
    if statistics_file is not None:
        record = {
            "extractor": extractor.name,
            "weights": extractor.weights_sha256,
            "resize": extractor.resize,
            "image_size": options.image_size,
            "num_images": real_source.count,
            "sha256": real.sha256,
        }
        save_statistics(statistics_file, to_statistics(real, record))
    environment = describe_environment(picked_device)
    return {
        **compute_scores(options, drawn, real),
        **describe_scores(options, extractor, sample_source, drawn, real_source, real),
        **sample_source.describe(environment),
        **environment,
    }


def check_weights_agree(reference: ReferenceSource, extractor: Extractor) -> None:
    """Raise ValueError if the statistics of a reference were made with other weights than the extractor's."""
    made_with = reference.statistics.record.get("weights")
    here = extractor.weights_sha256
    if reference.images is None and made_with not in (None, here):
        raise ValueError(
            f"reference={reference.name!r} was made with other weights of {extractor.name} (SHA-256 "
            f"{made_with[:12]}…, here {(here or 'none')[:12]}…); compute the statistics again, or pass the matching "
            "--weights"
        )


def reference_features(
    source: ReferenceSource, options: MetricOptions, extractor: Extractor, pool: ThreadPoolExecutor
) -> ImageFeatures:
    """The features of a reference: from the statistics of its file, or extracted from its images."""
    if source.images is None:
        return from_statistics(source.statistics, source.name)
    batches = read_batches(source.images, options.extractor_batch_size, pool, options.max_broken_images)
    return extract_features(batches, len(source.images), extractor, pool, "reference", options.keeps_reference)


def compute_scores(options: MetricOptions, samples: ImageFeatures, reference: ImageFeatures) -> dict:
    """The values of the requested metrics, by name."""
    scores: dict = {}
    for name in options.names:
        scores |= METRICS[name].compute(samples, reference, **options.settings_of(name))
        if name == "fid" and options.bootstrap:
            scores |= bootstrap_fid(options, scores["fid"], samples, reference)
    return scores


def bootstrap_fid(options: MetricOptions, fid: float, samples: ImageFeatures, reference: ImageFeatures) -> dict:
    """A confidence interval of FID, and the FID of each resample.

    The resamples are the same in all reports with the same seed and number of samples, so that differences between
    reports can be paired.
    """
    real = reference.statistics["features"]
    resamples = bootstrap_resamples(len(samples.features), options.bootstrap, options.metric_seed)
    distances = resampled_frechet_distances(samples.features, real.mean, real.covariance, resamples)
    values = list(tqdm(distances, total=options.bootstrap, desc="bootstrap", leave=False, dynamic_ncols=True))
    return {"fid_interval": bootstrap_interval(fid, values), "fid_resampled": values}
