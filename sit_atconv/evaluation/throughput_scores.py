"""Scoring in turns with clean-fid and torch-fidelity: the same images through the same network, each in its own way.

A folder's features: clean-fid resizes with PIL, as this toolkit does; torch-fidelity with its own function on tensors.
All three read PNG files. N images, F features each.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from cleanfid import fid as cleanfid
from cleanfid.resize import make_resizer
from torch import nn

from ..benchmarks.calls import TimedCalls
from .extractor import INCEPTION_FILE, Extractor
from .feature_statistics import FeatureStatistics
from .features import build_extractor
from .frechet import frechet_distance
from .image_features import ImageFeatures, extract_features, read_batches
from .image_sets import open_images
from .resize import INCEPTION_SIZE, describe_resize, on_device, resize_clean
from .throughput_files import BenchmarkFiles
from .throughput_options import ThroughputOptions

OURS, CLEAN_FID, TORCH_FIDELITY = "sit-atconv", "clean-fid", "torch-fidelity"
INCEPTION_FEATURES = 2048
NOT_INSTALLED = "torch-fidelity is not installed: pip install 'sit-atconv[benchmarks]'"


class Scorer:
    """Features and distances of two folders of images, by each of the tools.

    Args:
        files: the folders.
        options: batch size and data workers of all tools.
        extractor: the network of all tools.
        device: where it runs.
    """

    def __init__(self, files: BenchmarkFiles, options: ThroughputOptions, extractor: Extractor, device: torch.device):
        self.samples, self.reference = files.samples()
        self.options, self.extractor, self.device = options, extractor, device
        first = open_images("samples", str(self.samples)).image(0)
        self.size = tuple(extractor.prepare(first).shape[-2:])  # (height, width)
        self.clean_fid_options: dict[str, Any] = dict(
            mode="clean",
            num_workers=options.num_workers,
            batch_size=options.batch_size,
            device=device,
            verbose=False,
            custom_fn_resize=make_resizer("PIL", False, "bicubic", self.size[::-1]),
        )

    def own_features(self, folder: Path, keep: bool = False) -> ImageFeatures:
        """What eval/fid.py computes from a folder."""
        images = open_images("samples", str(folder))
        with ThreadPoolExecutor(max(1, self.options.num_workers)) as pool:
            batches = read_batches(images, self.options.batch_size, pool)
            return extract_features(batches, len(images), self.extractor, pool, folder.name, keep)

    def own_fid(self) -> float:
        """What eval/fid.py computes from two folders."""
        first, second = (self.own_features(folder).statistics["features"] for folder in (self.samples, self.reference))
        return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)

    def network(self, x: torch.Tensor) -> torch.Tensor:
        """The features of images in [0, 255] of the network's size."""
        return self.extractor.embed(x)["features"]

    def clean_fid_features(self, folder: Path) -> np.ndarray:
        """clean-fid's features of a folder, (N, F)."""
        return cleanfid.get_folder_features(str(folder), self.network, **self.clean_fid_options)

    def clean_fid(self) -> float:
        """clean-fid's FID of the two folders."""
        return float(
            cleanfid.compare_folders(str(self.samples), str(self.reference), self.network, **self.clean_fid_options)
        )

    def torch_fidelity_options(self) -> dict[str, Any]:
        """The options of torch-fidelity's functions, with the network registered under the extractor's name."""
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        network, size = self.network, self.size

        class SameNetwork(FeatureExtractorBase):
            def __init__(self, name: str, features_list: list[str], **kwargs):
                super().__init__(name, features_list)

            @staticmethod
            def get_provided_features_list() -> tuple[str, ...]:
                return ("features",)

            @staticmethod
            def get_default_feature_layer_for_metric(metric: str) -> str:
                return "features"

            @staticmethod
            def can_be_compiled() -> bool:
                return False

            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
                return (network(interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=size, align_corners=False)),)

        FEATURE_EXTRACTORS_REGISTRY[self.extractor.name] = SameNetwork
        return dict(
            input1=str(self.samples),
            input2=str(self.reference),
            feature_extractor=self.extractor.name,
            feature_layer_fid="features",
            cuda=self.device.type == "cuda",
            batch_size=self.options.batch_size,
            save_cpu_ram=not self.options.num_workers,
            cache=False,
            verbose=False,
        )

    def torch_fidelity_features(self) -> dict[str, torch.Tensor]:
        """torch-fidelity's features of the samples."""
        from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

        options = self.torch_fidelity_options()
        network = create_feature_extractor(options["feature_extractor"], ["features"], **options)
        return extract_featuresdict_from_input_id(1, network, **options)

    def torch_fidelity(self) -> float:
        """torch-fidelity's FID of the two folders."""
        import torch_fidelity

        options = self.torch_fidelity_options()
        return torch_fidelity.calculate_metrics(fid=True, **options)["frechet_inception_distance"]


def feature_calls(scorer: Scorer, missing: list[str]) -> TimedCalls:
    """The features of one folder by each tool, compared with clean-fid's."""
    calls: dict[str, Callable[[], object]] = {
        CLEAN_FID: partial(scorer.clean_fid_features, scorer.samples),
        OURS: partial(scorer.own_features, scorer.samples),
    }
    return with_torch_fidelity(calls, scorer.torch_fidelity_features, missing)


def fid_calls(scorer: Scorer, missing: list[str]) -> TimedCalls:
    """FID of two folders by each tool, from files to the score."""
    calls: dict[str, Callable[[], object]] = {CLEAN_FID: scorer.clean_fid, OURS: scorer.own_fid}
    return with_torch_fidelity(calls, scorer.torch_fidelity, missing)


def distance_calls(num_images: int, missing: list[str]) -> TimedCalls:
    """Means, covariances and the distance of two sets of given features, as many as Inception has."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, num_images, INCEPTION_FEATURES), dtype=np.float32)

    def own() -> float:
        statistics = FeatureStatistics(), FeatureStatistics()
        for part, features in zip(statistics, (first, second), strict=True):
            part.update(features)
        return frechet_distance(*(value for part in statistics for value in (part.mean, part.covariance)))

    def torch_fidelity() -> float:
        from torch_fidelity import metric_fid

        statistics = (metric_fid.fid_features_to_statistics(torch.from_numpy(each)) for each in (first, second))
        return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]

    calls: dict[str, Callable[[], object]] = {CLEAN_FID: lambda: cleanfid.fid_from_feats(first, second), OURS: own}
    return with_torch_fidelity(calls, torch_fidelity, missing)


def with_torch_fidelity(
    calls: dict[str, Callable[[], object]], call: Callable[[], object], missing: list[str]
) -> TimedCalls:
    """The calls and torch-fidelity's, all silent and without gradients; clean-fid's is the baseline."""
    if importlib.util.find_spec("torch_fidelity"):
        calls = {**calls, TORCH_FIDELITY: call}
    elif NOT_INSTALLED not in missing:
        missing.append(NOT_INSTALLED)
    return TimedCalls({name: partial(silently, each) for name, each in calls.items()}, dict.fromkeys(calls, CLEAN_FID))


@torch.no_grad()
def silently(call: Callable[[], object]) -> object:
    """Call without progress bars and warnings on the terminal."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return call()


def load_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """An extractor by its name. Inception has random weights if its own are neither given nor in PyTorch's cache."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if name != "inception" or weights is not None or cached.is_file():
        return build_extractor(name, weights if name == "inception" else None, device)
    return random_inception(device)


def random_inception(device: torch.device) -> Extractor:
    """InceptionV3 with random weights, for speed: torchvision's, whose layers have the sizes of the original's."""
    model: Any = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False)
    model.fc = nn.Identity()
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    model = model.to(device).eval()
    return Extractor(
        "inception, random weights",
        describe_resize(INCEPTION_SIZE),
        partial(resize_clean, size=INCEPTION_SIZE),
        lambda x: {"features": model((on_device(x, device) - 128) / 128)},
    )
