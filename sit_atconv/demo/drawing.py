"""Draw one image with everything that the demo shows of it: time, network calls, and the states on the way.

C channels of the latents, (h, w) their size; t=0 noise, t=1 data. Nothing here knows of the page.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image, Resampling

from ..models.vae import decode
from ..pipelines.schedulers import with_scheduler
from ..utils.randomness import image_generator


@dataclass(frozen=True)
class Choices:
    """What a visitor chooses; see `SiTPipeline.__call__`. If `solver` is None, it is that of the scheduler."""

    label: int = 0
    seed: int = 0
    guidance_scale: float = 1.0
    num_inference_steps: int | None = None
    solver: str | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Frame:
    """A state of the solver: its time t and its latents (1, C, h, w), float32 on the CPU."""

    t: float
    latents: torch.Tensor


@dataclass(frozen=True)
class Drawing:
    """One image, and how it came about.

    Attributes:
        image: the image.
        seconds: wall-clock time of the pipeline's call.
        network_calls: number of forward passes of the network. A guided one computes two rows, with and without class.
        frames: the noise and the state after each step.
        label: class of the image.
    """

    image: Image
    seconds: float
    network_calls: int
    frames: list[Frame]
    label: int


def solver_names(pipeline: DiffusionPipeline) -> list[str]:
    """The solvers that the pipeline's scheduler offers; none for a scheduler of diffusers, which has one of its own."""
    return list(getattr(pipeline.scheduler, "solvers", ()))


def with_solver(pipeline: DiffusionPipeline, solver: str | None) -> DiffusionPipeline:
    """Return the pipeline with another solver; the given one is not changed."""
    if solver is None or solver == pipeline.scheduler.config.get("solver"):
        return pipeline
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, solver=solver)
    return with_scheduler(pipeline, scheduler)


@contextmanager
def counting_calls(network: torch.nn.Module) -> Iterator[list[None]]:
    """Yield a list that grows by one entry with each forward pass of the network in this context."""
    calls: list[None] = []
    # Not a hook before the pass: the conditioning would no longer be computed ahead, which takes time.
    handle = network.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def draw(pipeline: DiffusionPipeline, choices: Choices) -> Drawing:
    """Draw one image.

    The noise is that of the first image of `sit-atconv sample --seed SEED`, and the same for all pipelines whose
    latents have the same shape.

    Raises:
        ValueError: if a choice cannot be used with this pipeline.
    """
    pipeline = with_solver(pipeline, choices.solver)
    size = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    height, width = choices.height or size, choices.width or size
    shape = pipeline.latents_shape(1, height, width)
    # Drawn on the CPU, as the pipeline does it, so that the noise does not depend on the device.
    generator = image_generator(choices.seed, 0)
    noise = pipeline.draw_noise(shape, generator).cpu()
    frames = [Frame(0.0, noise)]

    def keep(_pipeline: Any, _step: int, t: float, tensors: dict) -> dict:
        frames.append(Frame(float(t), tensors["latents"].float().cpu().clone()))
        return {}

    with counting_calls(pipeline.transformer) as calls:
        start = time.perf_counter()
        (image,) = pipeline(
            [choices.label],
            guidance_scale=choices.guidance_scale,
            num_inference_steps=choices.num_inference_steps,
            height=height,
            width=width,
            latents=noise,
            generator=generator,
            callback_on_step_end=keep,
        ).images
        seconds = time.perf_counter() - start
    return Drawing(image, seconds, len(calls), frames, choices.label)


def choose_frames(frames: Sequence[Frame], count: int) -> list[Frame]:
    """Choose at most `count` frames, those nearest to times that are evenly spaced from the first frame to the last."""
    targets = torch.linspace(frames[0].t, frames[-1].t, count).tolist()
    nearest = {min(range(len(frames)), key=lambda i: abs(frames[i].t - target)) for target in targets}
    return [frames[i] for i in sorted({*nearest, len(frames) - 1})]


@torch.no_grad()
def decode_frames(pipeline: DiffusionPipeline, frames: Sequence[Frame]) -> list[Image]:
    """Turn the latents of frames into images, as the pipeline does with its result."""
    latents = torch.cat([frame.latents for frame in frames]).to(pipeline.transformer.device)
    pixels = latents if pipeline.vae is None else decode(pipeline.vae, latents)
    return pipeline.image_processor.postprocess(pixels, output_type="pil")


def enlarge(image: Image, min_side: int) -> Image:
    """Enlarge an image by a whole factor until its shorter side has at least `min_side` pixels, without smoothing."""
    factor = -(-min_side // min(image.size))
    return image if factor <= 1 else image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
