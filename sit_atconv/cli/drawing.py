"""The images of `sit-atconv sample`, drawn in batches that fit the memory.

B images of H × W pixels and C channels, (B, C, H, W) in [0, 1].
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..evaluation.sampling import image_shape
from ..evaluation.sampling_options import SamplingOptions
from ..models.codecs import decoding_bytes
from ..models.costs import token_bytes
from ..models.vae import enable_tiling
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.environment import free_memory, is_out_of_memory
from ..utils.randomness import image_generator

MAX_FRAMES = 50  # of an animation
MEMORY_SHARE = 0.8  # of the free memory that is planned with; the rest is for what is not counted
TILE = 512  # pixels; smaller tiles change the colours


@dataclass
class Drawn:
    """Images (B, C, H, W), and what they looked like after each step; the last frame is `images`."""

    images: torch.Tensor
    frames: list[torch.Tensor] = field(default_factory=list)


def fit_to_memory(
    pipeline: SiTPipeline, options: SamplingOptions, height: int | None = None, width: int | None = None
) -> SamplingOptions:
    """Return the options with as many images at a time as the free memory holds, and say so if these are fewer.

    The VAE is switched to tiles if it cannot decode a whole image.

    Args:
        pipeline: the pipeline, on its device.
        options: how the images are drawn.
        height, width: size of the images in pixels. If None, that of the pipeline.
    """
    free = free_memory(pipeline._execution_device)
    if free is None:
        return options
    default = image_shape(pipeline)
    height, width = height or default[0], width or default[1]
    if pipeline.vae is not None:
        decoding = decoding_bytes(pipeline.vae, height, width, pipeline.vae.dtype.itemsize)
        if decoding > MEMORY_SHARE * free:
            print(
                f"decoding {width}×{height} pixels at once would take {decoding / 1e9:.3g} GB, and {free / 1e9:.3g} GB "
                f"are free: the VAE decodes tiles of {TILE} pixels, whose colours may differ"
            )
            enable_tiling(pipeline.vae, TILE)
    factor, transformer = pipeline.vae_scale_factor, pipeline.transformer
    passes = 1 if options.guidance_scale == 1 else 2  # with and without the class, at the same time
    image = passes * token_bytes(transformer.config, height // factor, width // factor, transformer.dtype.itemsize)
    fitting = max(1, int(MEMORY_SHARE * free) // max(1, image))
    if fitting >= options.batch_size:
        return options
    print(f"{free / 1e9:.3g} GB of memory are free, for {fitting} images at a time")
    return dataclasses.replace(options, batch_size=fitting)


def draw(
    pipeline: SiTPipeline,
    labels: Sequence[int],
    options: SamplingOptions,
    height: int | None = None,
    width: int | None = None,
    keep_frames: bool = False,
) -> Drawn:
    """Draw an image for each label, from the noise of (seed, position), in batches of at most `options.batch_size`.

    Args:
        pipeline: the pipeline, with the sampler that `options.configure` gave it.
        labels: class ids.
        options: seed, guidance, solver steps and batch size.
        height, width: size of the images in pixels. If None, that of the pipeline.
        keep_frames: also keep what the images look like after the steps, for an animation.
    """

    def draw_batch(indices: range) -> Drawn:
        states: list[torch.Tensor] = []
        images = pipeline(
            [labels[i] for i in indices],
            guidance_scale=options.guidance_scale,
            guidance_interval=tuple(options.guidance_interval),
            guidance_channels=options.guidance_channels,
            num_inference_steps=options.num_inference_steps,
            height=height,
            width=width,
            generator=[image_generator(options.seed, i) for i in indices],
            output_type="pt",
            callback_on_step_end=(lambda pipe, step, t, inputs: keep(states, inputs)) if keep_frames else None,
        ).images.cpu()
        chosen = thinned(states[:-1], MAX_FRAMES - 1)
        return Drawn(images, [pipeline._decode(state, "pt").cpu() for state in chosen] + [images] * keep_frames)

    return joined(in_batches(draw_batch, len(labels), options.batch_size))


def keep(states: list[torch.Tensor], inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Keep the latents of a step; a callback of the pipeline."""
    states.append(inputs["latents"].clone())
    return {}


def thinned(items: Sequence, count: int) -> list:
    """At most `count` of the items, evenly spaced, the first one included."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def in_batches(work: Callable[[range], Drawn], count: int, batch_size: int) -> list[Drawn]:
    """Work on the indices 0 … count − 1 in batches, with smaller ones from where memory does not suffice.

    Raises:
        ValueError: if it does not suffice for one image.
    """
    done: list[Drawn] = []
    start = 0
    while start < count:
        indices = range(start, min(start + batch_size, count))
        try:
            done.append(work(indices))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(indices) == 1:
                raise ValueError(f"one image needs more memory than there is: {str(error).splitlines()[0]}") from error
            batch_size = len(indices) // 2
            print(f"memory does not suffice for {len(indices)} images at a time; going on with {batch_size}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = indices.stop
    return done


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Join batches; where an adaptive solver took fewer steps, its last frame stays."""
    count = max(len(part.frames) for part in parts)
    for part in parts:
        part.frames += part.frames[-1:] * (count - len(part.frames))
    frames = [torch.cat([part.frames[i] for part in parts]) for i in range(count)]
    return Drawn(torch.cat([part.images for part in parts]), frames)
