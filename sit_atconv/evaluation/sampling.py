"""What evaluations share: samples that depend on a seed and their index alone, and reports of how they were made.

B images of H × W pixels and C channels; images are uint8 (B, H, W, C), what a PNG would hold.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..flow.guidance import Guidance
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from ..sharing.hub import is_pipeline_folder
from ..utils.checks import check_choice, check_count
from ..utils.hashing import file_sha256
from ..utils.randomness import image_generator

LABELINGS = ("balanced", "random")
SAMPLERS = {"ode": InterpolantODEScheduler, "sde": InterpolantSDEScheduler}


@dataclass
class SamplingOptions:
    """How images are drawn from a pipeline. Image i depends on its label and on (seed, i) alone.

    Args:
        num_samples: images to draw; as many as there are reference images where none is given.
        labels: "balanced" (classes take turns) or "random" (uniform, a function of (seed, i)).
        seed: of noise and random labels.
        batch_size: images per forward pass.
        guidance_scale: of classifier-free guidance; 1 is none.
        guidance_interval: guide while start ≤ t ≤ end only; t=0 noise, t=1 data.
        guidance_channels: guide the first so many channels; all where none is given.
        num_inference_steps: solver steps; the pipeline's default where none is given.
        sampler: "ode" or "sde", in place of the pipeline's own scheduler.
        solver: of that sampler, such as heun or dopri5, in place of the scheduler's own.
    """

    num_samples: int | None = None
    labels: Literal["balanced", "random"] = "balanced"
    seed: int = 0
    batch_size: int = 64
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int | None = None
    num_inference_steps: int | None = None
    sampler: Literal["ode", "sde"] | None = None
    solver: str | None = None

    def stamp(self) -> dict:
        """What a report says of them; sampler and solver stand in the scheduler's config."""
        values = dataclasses.asdict(self)
        for name in ("sampler", "solver"):
            del values[name]
        return {**values, "guidance_interval": list(self.guidance_interval)}

    def apply(self, pipeline: SiTPipeline) -> None:
        """Give the pipeline the sampler and solver asked for, and check that everything else can be done.

        Raises:
            ValueError: naming the option that cannot be used.
        """
        check_choice("labels", self.labels, LABELINGS)
        if self.num_samples is not None:
            check_count("num_samples", self.num_samples)
        if self.sampler is not None or self.solver is not None:
            scheduler_class = type(pipeline.scheduler) if self.sampler is None else SAMPLERS[self.sampler]
            if scheduler_class not in SAMPLERS.values():
                raise ValueError(f"solver={self.solver!r}: {scheduler_class.__name__} has none; give --sampler, too")
            options = {} if self.solver is None else {"solver": self.solver}
            if scheduler_class is not type(pipeline.scheduler):
                default = inspect.signature(scheduler_class.__init__).parameters["solver"].default
                options = {"solver": default, **options}
            pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **options)
        if self.num_inference_steps is None:
            self.num_inference_steps = pipeline.default_num_inference_steps
        check_sampling(
            pipeline,
            self.seed,
            self.batch_size,
            self.num_inference_steps,
            Guidance(self.guidance_scale, tuple(self.guidance_interval), self.guidance_channels),
        )

    def label_ids(self, indices: Sequence[int], num_classes: int) -> list[int]:
        """The class of each image, whatever others are drawn."""
        if self.labels == "balanced":
            return [i % num_classes for i in indices]
        return [int(np.random.default_rng((self.seed, i)).integers(num_classes)) for i in indices]


def split_options(options: dict, *classes: type) -> list:
    """Sort parsed command-line options into the dataclasses that they belong to."""
    return [cls(**{each.name: options[each.name] for each in dataclasses.fields(cls)}) for cls in classes]


def draw_images(pipeline: SiTPipeline, indices: Sequence[int], options: SamplingOptions) -> np.ndarray:
    """Sample the images with these indices in one batch: (B, H, W, C) uint8, rounded as when a PNG is written.

    Raises:
        ValueError: for an image that is not finite.
    """
    labels = options.label_ids(indices, pipeline.transformer.config.num_classes)
    return _draw(pipeline, indices, labels, options)


def _draw(pipeline: SiTPipeline, indices: Sequence[int], labels: Sequence[int], options: SamplingOptions) -> np.ndarray:
    images = pipeline(
        list(labels),
        guidance_scale=options.guidance_scale,
        guidance_interval=tuple(options.guidance_interval),
        guidance_channels=options.guidance_channels,
        num_inference_steps=options.num_inference_steps,
        generator=[image_generator(options.seed, i) for i in indices],
        output_type="np",
    ).images  # (B, H, W, C) float in [0, 1]
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        bad = int(np.argmin(finite))
        raise ValueError(
            f"image {indices[bad]} (seed={options.seed}, class {labels[bad]}) is not finite; check the pipeline's "
            "weights"
        )
    return (images * 255).round().astype(np.uint8)


@contextmanager
def counting_rows(model: torch.nn.Module):
    """Count the images that pass through the network: a list whose one entry grows by B with each call of B images.

    Per image drawn that is the number of network calls, of which guidance needs two at a time.
    """
    rows = [0]

    def count(module, inputs, output):
        rows[0] += len(output[0])

    handle = model.register_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def load_pipeline(folder: str | Path, device: torch.device) -> SiTPipeline:
    """Load a pipeline folder with the installed classes, its progress bar off.

    Raises:
        ValueError: for a folder that is missing, incomplete or of another pipeline.
    """
    if not is_pipeline_folder(folder):
        raise ValueError(f"{str(folder)!r} is no pipeline folder: it has no {SiTPipeline.config_name}")
    try:
        pipeline = SiTPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} cannot be loaded as a SiTPipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def image_shape(pipeline: SiTPipeline) -> tuple[int, int, int]:
    """(H, W, C) of the pipeline's images."""
    size = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    channels = pipeline.transformer.out_channels if pipeline.vae is None else pipeline.vae.config.out_channels
    return size, size, channels


def balanced_labels(num_samples: int, num_classes: int) -> list[int]:
    """Class ids 0, 1, …, num_classes − 1, 0, 1, …: each as often as the others, up to one."""
    return [i % num_classes for i in range(num_samples)]


def check_sampling(
    pipeline: SiTPipeline,
    seed: int,
    batch_size: int,
    num_inference_steps: int,
    guidance: Guidance,
) -> None:
    """Find out before any work whether `generate` can do this.

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    check_count("batch_size", batch_size)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0")
    height, width, _ = image_shape(pipeline)
    pipeline.check_inputs(batch_size, guidance, num_inference_steps, height, width)
    if hasattr(pipeline.scheduler, "time_grid"):
        pipeline.scheduler.time_grid(num_inference_steps)


def generate(
    pipeline: SiTPipeline,
    labels: Sequence[int],
    seed: int,
    batch_size: int,
    guidance_scale: float,
    num_inference_steps: int,
) -> Iterator[np.ndarray]:
    """Sample one image per label, batch by batch. Image i depends on labels[i] and (seed, i) alone.

    Yields:
        (B, H, W, C) uint8, rounded as when a PNG is written.

    Raises:
        ValueError: for arguments that the pipeline refuses, or an image that is not finite.
    """
    check_sampling(pipeline, seed, batch_size, num_inference_steps, Guidance(guidance_scale))
    options = SamplingOptions(
        seed=seed, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, batch_size=batch_size
    )
    for start in range(0, len(labels), batch_size):
        indices = range(start, min(start + batch_size, len(labels)))
        yield _draw(pipeline, indices, [labels[i] for i in indices], options)


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as features: (B, H, W, C) uint8 -> (B, H·W·C) float64 in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0


def describe_pipeline(pipeline: SiTPipeline) -> dict:
    """What a report says of the pipeline itself: its mixer and its scheduler."""
    config = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    return {
        "mixer": pipeline.transformer.config.mixer,
        "scheduler": {"class": type(pipeline.scheduler).__name__, "config": config},
    }


def folder_sha256(folder: str | Path) -> str:
    """A SHA-256 of the names and bytes of a pipeline folder's configs and weights: *.json and *.safetensors.

    A model card and sample pictures, which people edit, and hidden files do not count.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder)
        if file.suffix in (".json", ".safetensors") and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
