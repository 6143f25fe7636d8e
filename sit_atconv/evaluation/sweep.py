"""Which guidance scale, interval and average of the weights draw best? A search over paired noise.

All settings draw the same images: image i has the same label and noise in each. After a quarter and after half of the
images, a setting is dropped if its Fréchet distance is larger than that of the best one by more than a twentieth, and
by more than three standard errors of their difference, which a bootstrap over the images estimates, the same images for
both. The best settings are confirmed with other noise: the smallest of many distances is too small.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.environment import has_amx, pick_device
from ..utils.files import folder_lock, staged, write_json
from ..utils.hashing import tensors_sha256
from .extractor import Extractor
from .feature_statistics import FeatureStatistics
from .few_steps import reference_features
from .frechet import resampled_frechet_distances
from .image_features import extract_features
from .intervals import bootstrap_interval, bootstrap_resamples
from .records import describe_pipeline, earlier_results, recorded_dtype
from .sampling import draw_images, image_shape
from .sampling_dtype import bfloat16_difference, cast_pipeline, choose_dtype
from .sampling_options import SamplingOptions
from .sweep_options import SweepOptions
from .sweep_settings import Average, Setting, grid, open_averages

RESULTS = "sweep.json"
ROUNDS = 4, 2, 1  # the number of images is divided by
LARGEST_GAP, LARGEST_SHARE = 3.0, 0.05  # in standard errors, and in the distance of the best
SEARCH_RESAMPLES, CONFIRMATION_RESAMPLES = 40, 200


def measure_sweep(options: SweepOptions) -> dict:
    """Search, and confirm the best. Started again, the same command goes on, also with more settings.

    Returns:
        What sweep.json holds: "settings" and "confirmation", as `search` and `confirm_best` return them, and what they
        depend on.

    Raises:
        ValueError: naming what cannot be used, before any long work.
    """
    options.check()
    device = pick_device(options.device)
    averages = open_averages(options.folder, options.averages, options.stds)
    settings = grid([average.name for average in averages], options.scales, options.intervals)
    output = Path(options.output)
    sampling = recorded_dtype(options.sampling, output / RESULTS)
    sampling, described, own_size = check_settings(averages, settings, sampling, device)
    is_given = options.image_size is not None or options.reference == "digits"
    size = options.image_size if is_given else own_size
    extractor, real = reference_features(options.reference, options.extractor, size, device)
    sampling = replace(sampling, num_samples=options.num_samples or real.n)
    record = {
        "folder": str(Path(options.folder).resolve()),
        "reference": options.reference,
        "image_size": size,
        "extractor": extractor.name,
        "extractor_weights": extractor.weights,
        **described,
        "device": device.type,
    }
    names = ("num_samples", "seed", "batch_size", "num_inference_steps", "dtype")
    record |= {name: getattr(sampling, name) for name in names}
    output.mkdir(parents=True, exist_ok=True)
    with folder_lock(output, "output"):
        if not earlier_results(output / RESULTS, record):
            write_json(output / RESULTS, record)
        drawing = Drawing(output / "features", {each.name: each for each in averages}, sampling, extractor, device)
        rows, order = search(settings, drawing, real)
        held_out = replace(drawing, options=replace(sampling, seed=sampling.seed + 1))
        unguided = Setting(averages[0].name, 1.0, (0.0, 1.0))
        confirmation = confirm_best(order[: options.confirm], unguided, held_out, real)
        result = {**record, "settings": rows, "confirmation": confirmation}
        write_json(output / RESULTS, result)
    return result


def check_settings(
    averages: Sequence[Average], settings: Sequence[Setting], options: SamplingOptions, device: torch.device
) -> tuple[SamplingOptions, dict, int]:
    """Check all settings before the first image is drawn.

    Returns:
        The options with the number of solver steps and the dtype, what a record says about the pipelines, and the side
        of an image.

    Raises:
        ValueError: naming what cannot be used, such as guidance of a model without a null class.
    """
    differences = []
    for average in averages:  # loading all tells their hashes
        pipeline = average.load(device)
        for setting in settings:
            options = options_of(setting, options).resolve(pipeline)
        if options.dtype == "auto" and has_amx(device):
            differences.append(bfloat16_difference(pipeline, options_of(strongest(settings), options)))
    if options.dtype == "auto":
        options = choose_dtype(options, differences)
    vae = None if pipeline.vae is None else tensors_sha256(pipeline.vae.state_dict())
    return options, {**describe_pipeline(pipeline), "vae_sha256": vae}, image_shape(pipeline)[0]


def strongest(settings: Sequence[Setting]) -> Setting:
    """A setting whose guidance is at least as strong as that of each: the largest scale, over all of its intervals."""
    largest = max(settings, key=lambda setting: setting.scale)
    starts, ends = zip(*(setting.interval for setting in settings if setting.scale == largest.scale), strict=True)
    return largest._replace(interval=(min(starts), max(ends)))


def options_of(setting: Setting, options: SamplingOptions) -> SamplingOptions:
    """The options of sampling with a setting."""
    return replace(options, guidance_scale=setting.scale, guidance_interval=setting.interval)


@dataclass
class Drawing:
    """Draws images with settings, and keeps their features in files.

    Args:
        folder: for the files.
        averages: by their names.
        options: of sampling, without guidance.
        extractor: what computes the features.
        device: where the pipelines are.
    """

    folder: Path
    averages: dict[str, Average]
    options: SamplingOptions
    extractor: Extractor
    device: torch.device

    def __post_init__(self):
        self.loaded: tuple[str, SiTPipeline] | None = None

    def features(self, setting: Setting, start: int, stop: int) -> np.ndarray:
        """Features (stop − start, F) of the images with these numbers, from their file or drawn now."""
        sha256, (begin, end) = self.averages[setting.average].sha256, setting.interval
        name = f"{sha256[:16]}-{setting.scale!r}-{begin!r}-{end!r}-seed{self.options.seed}-{start}-{stop}.npy"
        file = self.folder / name
        if not file.exists():
            self.folder.mkdir(exist_ok=True)
            drawn = self._draw(setting, start, stop)
            with staged(file) as part, part.open("wb") as opened:
                np.save(opened, drawn)
            return drawn
        try:
            kept = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file} is damaged ({error}); remove it, and it is made again") from error
        if kept.shape[:1] != (stop - start,) or kept.ndim != 2:
            raise ValueError(f"{file} holds an array of shape {kept.shape}; remove it, and it is made again")
        return kept

    def _draw(self, setting: Setting, start: int, stop: int) -> np.ndarray:
        if self.loaded is None or self.loaded[0] != setting.average:
            pipeline = self.averages[setting.average].load(self.device)
            self.loaded = setting.average, cast_pipeline(pipeline, self.options.dtype)
        pipeline, options = self.loaded[1], options_of(setting, self.options)
        size = options.batch_size
        indices = [range(first, min(first + size, stop)) for first in range(start, stop, size)]
        with ThreadPoolExecutor(1) as pool:
            batches = (list(draw_images(pipeline, part, options)) for part in indices)
            return extract_features(batches, stop - start, self.extractor, pool, str(setting), keep=True).features


def search(settings: Sequence[Setting], drawing: Drawing, real: FeatureStatistics) -> tuple[list[dict], list[Setting]]:
    """Compare all settings and drop hopeless ones, as the top of this file says.

    Returns:
        One dictionary per setting: "average", "scale", "interval", the number of "images", and after them "fid",
        "behind" (by how much it is larger than the best one's), "standard_error" of that, and whether it was "dropped".
        And the settings in the order in which they are confirmed: those with the most images first, then the best.
    """
    alive, features = list(settings), dict.fromkeys(settings, np.zeros((0, 0)))
    rows: dict[Setting, dict] = {}
    assert drawing.options.num_samples is not None  # resolved before
    start = 0
    for divisor in ROUNDS:
        stop = drawing.options.num_samples // divisor
        for setting in tqdm(alive, desc=f"{stop} images", unit="setting"):
            new = drawing.features(setting, start, stop)
            features[setting] = new if not start else np.concatenate([features[setting], new])
        compared = compare({each: features[each] for each in alive}, real, SEARCH_RESAMPLES)
        hopeless = LARGEST_SHARE * min(values["fid"] for values in compared.values())
        for setting, values in compared.items():
            gap = max(LARGEST_GAP * values["standard_error"], hopeless)
            dropped = divisor != ROUNDS[-1] and values["behind"] > gap
            rows[setting] = {**asdict_of(setting), "images": stop, **values, "dropped": dropped}
        alive = [setting for setting in alive if not rows[setting]["dropped"]]
        features = {setting: features[setting] for setting in alive}
        start = stop
    order = sorted(settings, key=lambda setting: (-rows[setting]["images"], rows[setting]["fid"]))
    return [rows[setting] for setting in settings], order


def asdict_of(setting: Setting) -> dict:
    """A setting as JSON holds it."""
    return {**setting._asdict(), "interval": list(setting.interval)}


def compare(
    features: dict[Setting, np.ndarray], real: FeatureStatistics, num_resamples: int, best: Setting | None = None
) -> dict[Setting, dict]:
    """Fréchet distances of features (N, F) by setting, and their paired differences to the best one.

    Args:
        features: of the same number of images each.
        real: mean and covariance of the real images.
        num_resamples: number of bootstrap resamples, the same for all settings.
        best: the setting to subtract. If None, that of the smallest distance.

    Returns:
        For each setting "fid", "behind", "standard_error", and the 95 % interval of "behind".
    """
    N = len(next(iter(features.values())))
    resamples = [np.ones(N, int), *bootstrap_resamples(N, num_resamples)]
    distances = {
        setting: np.array(list(resampled_frechet_distances(values, real.mean, real.covariance, resamples)))
        for setting, values in features.items()
    }
    best = min(distances, key=lambda setting: distances[setting][0]) if best is None else best
    compared = {}
    for setting, values in distances.items():
        behind = values - distances[best]
        compared[setting] = {
            "fid": float(values[0]),
            "behind": float(behind[0]),
            "standard_error": float(behind[1:].std(ddof=1)),
            "behind_interval": bootstrap_interval(behind[0], behind[1:]),
        }
    return compared


def confirm_best(
    finalists: Sequence[Setting], unguided: Setting, drawing: Drawing, real: FeatureStatistics
) -> list[dict]:
    """Draw images of the best settings with noise that the search has not seen; see `compare` for what is returned.

    Differences are to the best of the search, which comes first and stays the choice.
    """
    N = drawing.options.num_samples
    assert N is not None  # resolved before
    features = {
        setting: drawing.features(setting, 0, N)
        for setting in tqdm(dict.fromkeys([*finalists, unguided]), desc="confirmation", unit="setting")
    }
    compared = compare(features, real, CONFIRMATION_RESAMPLES, finalists[0])
    return [{**asdict_of(setting), "images": N, **values} for setting, values in compared.items()]
