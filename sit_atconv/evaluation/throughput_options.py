"""The options of eval/throughput.py, which are read before PyTorch is imported; throughput.py obeys them."""

from dataclasses import dataclass

from ..utils.checks import MAX_WORKERS, check_choice, check_count, check_positive
from ..utils.files import check_new_file
from ..utils.source_names import check_folder_or_name, check_source
from .extractor import check_extractor

MEASUREMENTS = ("loaders", "features", "fid", "distance", "sampling", "encoding")
PIXELS_PER_LATENT = 8  # of Stable Diffusion's VAE


@dataclass
class ThroughputOptions:
    """What to measure and how.

    Args:
        measurements: any of loaders, features, fid, distance, sampling, encoding. If null, all of them.
        data: where the images come from: a folder, parquet files, hf:NAME, tar shards. If null, made pictures of
            500 × 375 pixels.
        num_images: number of images that are loaded and scored; half of those that are scored are the reference.
        num_drawn: number of images that are sampled and encoded.
        image_size: side of the images in pixels, a multiple of 8.
        extractors: networks of "features"; the first one is also that of "fid". If null, inception and
            efficientnet-lite0.
        weights: file with the weights of the extractor inception. If null, those in PyTorch's cache; random weights,
            which are as fast, if there are none.
        pipeline: the pipeline folder that is sampled. If null, SiT-ATConv-Nano/4 in pixel space with random weights.
        vae: the VAE that encodes: a folder or a name on the Hub. If null, Stable Diffusion's architecture with random
            weights.
        steps: solver steps of "sampling".
        batch_size: number of images in a batch, of all that take turns.
        num_workers: number of data workers of the loaders and the peers; 0 reads in the same process, and then one
            thread reads for the scores.
        clock: wall, or cpu for the processor time of this process, where other programs share the machine; the latter
            needs num_workers 0.
        threads: number of CPU threads within an operation. If null, PyTorch's choice.
        device: such as cpu or cuda; auto is the accelerator if there is one.
        warmup: number of rounds that run first and are not counted.
        repeats: number of rounds that are counted; each round runs every call once.
        max_seconds: time limit of each measurement: once a round has been counted, none starts after it.
        output: folder for the results, which must not exist. If null, runs/throughput-DATE-TIME.

    Raises:
        ValueError: if an option cannot be used; the message names the field, the value and the remedy.
    """

    measurements: list[str] | None = None
    data: str | None = None
    num_images: int = 256
    num_drawn: int = 16
    image_size: int = 256
    extractors: list[str] | None = None
    weights: str | None = None
    pipeline: str | None = None
    vae: str | None = None
    steps: int = 10
    batch_size: int = 16
    num_workers: int = 0
    clock: str = "wall"
    threads: int | None = None
    device: str = "auto"
    warmup: int = 1
    repeats: int = 3
    max_seconds: float = 60.0
    output: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_drawn", "steps", "batch_size", "repeats"):
            check_count(name, getattr(self, name))
        check_count("num_images", self.num_images, least=4)
        check_count("num_workers", self.num_workers, least=0, most=MAX_WORKERS)
        check_count("warmup", self.warmup, least=0)
        check_positive("max_seconds", self.max_seconds)
        check_choice("clock", self.clock, ("wall", "cpu"))
        if self.clock == "cpu" and self.num_workers:
            raise ValueError(
                f"clock='cpu' does not see the time of data workers: num_workers={self.num_workers}; make it 0, or "
                "choose the clock wall"
            )
        if self.threads is not None:
            check_count("threads", self.threads)
        check_count("image_size", self.image_size)
        if self.image_size % PIXELS_PER_LATENT:
            raise ValueError(f"image_size={self.image_size} must be a multiple of {PIXELS_PER_LATENT}")
        self.measurements = list(MEASUREMENTS) if self.measurements is None else self.measurements
        self.extractors = ["inception", "efficientnet-lite0"] if self.extractors is None else self.extractors
        for field in ("measurements", "extractors"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field}={values} must name at least one, and each only once")
        for measurement in self.measurements:
            check_choice("measurement", measurement, MEASUREMENTS)
        for extractor in self.extractors:
            check_extractor(extractor, self.weights if extractor == "inception" else None)
        if self.data is not None:
            check_source("data", self.data)
        if self.vae is not None:
            check_folder_or_name("vae", self.vae)
        check_new_file("output", self.output)
