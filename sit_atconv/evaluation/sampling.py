"""Sampling for evaluations: images that depend on their label, a seed and their index, and on nothing else.

B images of H × W pixels and C channels; images are uint8 (B, H, W, C), as a PNG file holds them.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..flow.guidance import Guidance
from ..models.finite import NotFiniteError
from ..pipelines.pipeline_sit import SiTPipeline
from ..pipelines.schedulers import with_scheduler
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from ..sharing.folder import check_pipeline_folder
from ..utils.checks import check_choice, check_count
from ..utils.randomness import image_generator

LABELINGS = ("balanced", "random")
SAMPLERS = {"ode": InterpolantODEScheduler, "sde": InterpolantSDEScheduler}


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn from a pipeline. Image i depends on its label and on (seed, i) only.

    Args:
        num_samples: number of images to draw. If None, as many as there are reference images.
        labels: how classes are assigned to images: "balanced" (the classes take turns) or "random" (uniformly, as a
            function of (seed, i)).
        seed: seed of the noise and the random labels.
        batch_size: number of images per forward pass.
        guidance_scale: scale of classifier-free guidance; 1 disables guidance.
        guidance_interval: apply guidance only while start ≤ t ≤ end; t=0 is noise, t=1 is data.
        guidance_channels: number of leading channels that are guided. If None, all channels are.
        num_inference_steps: number of solver steps. If None, the default of the pipeline.
        sampler: "ode" or "sde", to replace the scheduler of the pipeline. If None, that scheduler is used.
        solver: solver of the sampler, such as heun or dopri5. If None, the one of the scheduler.
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

    @property
    def guidance(self) -> Guidance:
        """The options of guidance, checked.

        Raises:
            ValueError: if one of them is out of range.
        """
        return Guidance(self.guidance_scale, self.guidance_interval, self.guidance_channels)

    def configure(self, pipeline: SiTPipeline) -> SiTPipeline:
        """Return a pipeline of the same components with the requested sampler; the given pipeline is not changed.

        Raises:
            ValueError: if the scheduler has no such solver.
        """
        if self.sampler is None and self.solver is None:
            return pipeline
        current = pipeline.scheduler
        scheduler_class = type(current) if self.sampler is None else SAMPLERS[self.sampler]
        if scheduler_class not in SAMPLERS.values():
            raise ValueError(
                f"solver={self.solver!r}: {scheduler_class.__name__} has no solvers; also give --sampler ode or sde"
            )
        options = {} if self.solver is None else {"solver": self.solver}
        if scheduler_class is not type(current):
            default = inspect.signature(scheduler_class.__init__).parameters["solver"].default
            options = {"solver": default, **options}
        return with_scheduler(pipeline, scheduler_class.from_config(current.config, **options))

    def resolve(self, pipeline: SiTPipeline) -> "SamplingOptions":
        """Check the options against a pipeline, and return them with the number of solver steps filled in.

        Raises:
            ValueError: naming the option that cannot be used.
        """
        check_choice("labels", self.labels, LABELINGS)
        if self.num_samples is not None:
            check_count("num_samples", self.num_samples)
        pipeline = self.configure(pipeline)
        steps = pipeline.default_num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        check_count("batch_size", self.batch_size)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be a whole number of at least 0")
        height, width, _ = image_shape(pipeline)
        pipeline.check_inputs(self.batch_size, self.guidance, steps, height, width)
        if hasattr(pipeline.scheduler, "time_grid"):
            pipeline.scheduler.time_grid(steps)  # raises for a number of steps that the solver cannot take
        return dataclasses.replace(self, num_inference_steps=steps)

    def label_ids(self, indices: Sequence[int], num_classes: int) -> list[int]:
        """The class of each of these images; it does not depend on which other images are drawn."""
        if self.labels == "balanced":
            return balanced_labels(indices, num_classes)
        return [int(np.random.default_rng((self.seed, i)).integers(num_classes)) for i in indices]

    def record(self) -> dict:
        """What reports record of the options. Sampler and solver are part of the scheduler's config there."""
        values = dataclasses.asdict(self)
        for name in ("sampler", "solver"):
            del values[name]
        return {**values, "guidance_interval": list(self.guidance_interval)}


def split_options(options: dict, *classes: type) -> list[Any]:
    """Build one dataclass of each given type from the parsed command-line options that are its fields."""
    return [cls(**{each.name: options[each.name] for each in dataclasses.fields(cls)}) for cls in classes]


def load_pipeline(folder: str | Path, device: torch.device) -> SiTPipeline:
    """Load a pipeline folder with the installed classes, without a progress bar.

    Raises:
        ValueError: if the folder is missing, incomplete, or holds another kind of pipeline.
    """
    check_pipeline_folder(folder)
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


def balanced_labels(indices: Sequence[int], num_classes: int) -> list[int]:
    """The class ids of these images if classes take turns: 0, 1, …, num_classes − 1, 0, 1, …"""
    return [i % num_classes for i in indices]


def draw_images(
    pipeline: SiTPipeline, indices: Sequence[int], options: SamplingOptions, labels: Sequence[int] | None = None
) -> np.ndarray:
    """Sample the images with these indices in one batch.

    Args:
        pipeline: the pipeline, with the sampler that `options.configure` gave it.
        indices: numbers of the images; image i gets the noise of (seed, i).
        options: the seed, the guidance and the number of solver steps.
        labels: class ids of the images. If None, those that the options assign to the indices.

    Returns:
        (B, H, W, C) uint8, rounded as when a PNG file is written.

    Raises:
        ValueError: if an image is not finite.
    """
    if labels is None:
        labels = options.label_ids(indices, pipeline.transformer.config.num_classes)
    try:
        images = pipeline(
            list(labels),
            guidance_scale=options.guidance_scale,
            guidance_interval=tuple(options.guidance_interval),
            guidance_channels=options.guidance_channels,
            num_inference_steps=options.num_inference_steps,
            generator=[image_generator(options.seed, i) for i in indices],
            output_type="np",
        ).images  # (B, H, W, C) float in [0, 1]
    except NotFiniteError as error:
        if (bad := error.row) is None:
            raise
        raise ValueError(
            f"image {indices[bad]} (seed={options.seed}, class {labels[bad]}) is not finite: {error}"
        ) from error
    return (images * 255).round().astype(np.uint8)


def generate(pipeline: SiTPipeline, labels: Sequence[int], options: SamplingOptions) -> Iterator[np.ndarray]:
    """Sample one image per label, batch by batch. Image i depends on labels[i] and (seed, i) only.

    Yields:
        (B, H, W, C) uint8, rounded as when a PNG file is written.

    Raises:
        ValueError: if the pipeline cannot use an option, or an image is not finite.
    """
    options = options.resolve(pipeline)
    for start in range(0, len(labels), options.batch_size):
        indices = range(start, min(start + options.batch_size, len(labels)))
        yield draw_images(pipeline, indices, options, [labels[i] for i in indices])


@contextmanager
def counting_rows(model: torch.nn.Module) -> Iterator[list[int]]:
    """Count the images that pass through a network: a list whose only entry grows by B with each call of B images.

    Divided by the number of images drawn, this is the number of network calls per image; guidance makes two at a time.
    """
    rows = [0]

    def count(module, inputs, output):
        rows[0] += len(output[0])

    handle = model.register_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as features: (B, H, W, C) uint8 -> (B, H·W·C) float64 in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0
