"""The data type in which pipelines are sampled: bfloat16 on a CPU with AMX, if their images stay the same to the eye.

AMX (Advanced Matrix Extensions) multiplies matrices of bfloat16 several times as fast as other instructions multiply
those of float32. Whether a model bears the rounding is tried on a few images, which are drawn in both.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..pipelines.pipeline_sit import SiTPipeline
from ..pipelines.schedulers import with_scheduler
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..utils.environment import free_memory, has_amx, is_out_of_memory
from ..utils.text import counted
from .sampling import draw_images
from .sampling_options import SamplingOptions

NUM_CHECKED = 4  # images
CHECKED_STEPS = 4  # with more steps, images differ less, since the rounding of one is independent of that of the others
LARGEST_DIFFERENCE = 1.0  # grey levels of 255, on average over all values of the images


def resolve_dtype(pipelines: Sequence[SiTPipeline], options: SamplingOptions) -> SamplingOptions:
    """Return the options with the data type in place of "auto", the same for all of these pipelines.

    It is bfloat16 on a CPU with AMX if the images of each pipeline bear it, which takes about as long as half an image
    of each, and float32 otherwise. On a CPU with AMX, a line says which it is, and why. Pipelines that are not in
    float32 were cast by their owner: theirs is kept.

    Args:
        pipelines: the pipelines, with the sampler that `options.configure` gave them.
        options: how images are drawn; the guidance and, if it is smaller, the number of steps are those of the check.

    Raises:
        ValueError: if an image is not finite in float32, or the pipelines are in several data types.
    """
    if options.dtype != "auto":
        return options
    there = sorted({network_dtype(pipeline) for pipeline in pipelines})
    if len(there) > 1:
        raise ValueError(f"dtype='auto': the pipelines are in {' and '.join(there)}; name one of them for all")
    if there != ["float32"]:
        return replace(options, dtype=there[0])  # type: ignore[arg-type]
    tried = [pipeline for pipeline in pipelines if has_amx(pipeline._execution_device)]
    return choose_dtype(options, [bfloat16_difference(pipeline, options) for pipeline in tried])


def choose_dtype(options: SamplingOptions, differences: Sequence[float]) -> SamplingOptions:
    """Return the options with the data type that fits what `bfloat16_difference` found in each pipeline, and say so.

    Without differences, nothing was tried: it is float32.
    """
    if not differences:
        return replace(options, dtype="float32")
    difference, count = max(differences), len(differences)
    images = counted(NUM_CHECKED, "image") + (f" of each of {count} pipelines" if count > 1 else "")
    found = f"{images} differ by {difference:.2g} grey levels of 255 on average"
    if math.inf in differences:
        found = "an image is not finite"
    elif any(map(math.isnan, differences)):
        found = "the trial needs more memory than there is"
    if not all(each <= LARGEST_DIFFERENCE for each in differences):  # NaN is not
        print(f"sampling in float32: in bfloat16, for which this CPU has AMX, {found}", flush=True)
        return replace(options, dtype="float32")
    print(f"sampling in bfloat16, for which this CPU has AMX: {found} (--dtype float32 switches it off)", flush=True)
    return replace(options, dtype="bfloat16")


def bfloat16_difference(pipeline: SiTPipeline, options: SamplingOptions) -> float:
    """Mean absolute difference of the images in bfloat16 and in float32, in grey levels of 255.

    The images are the first of seed 0, in at most four steps, of Euler's method for an ODE. They are drawn one by one,
    beside a copy of the networks.

    Args:
        pipeline: the pipeline in float32.
        options: the guidance, and the number of steps if it is smaller.

    Returns:
        The difference; infinity if an image in bfloat16 is not finite; NaN if memory does not suffice.

    Raises:
        ValueError: if an image in float32 is not finite.
    """
    # Linux kills who takes more memory than there is, instead of refusing it.
    free = free_memory(pipeline._execution_device)
    copied = sum(weight.nbytes for network in networks(pipeline) for weight in network.parameters())
    if free is not None and copied > free:
        return math.nan
    scheduler = pipeline.scheduler
    if isinstance(scheduler, InterpolantODEScheduler):  # an adaptive solver would take any number of calls
        scheduler = InterpolantODEScheduler.from_config(scheduler.config, solver="euler")
    pipeline = with_scheduler(pipeline, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    steps = min(options.num_inference_steps or CHECKED_STEPS, CHECKED_STEPS)
    options = replace(options, seed=0, num_inference_steps=steps)
    try:
        exact = draw_singly(pipeline, options)
        pipeline = cast_pipeline(with_own_networks(pipeline), "bfloat16")
        try:
            rounded = draw_singly(pipeline, options)
        except ValueError:  # an image that is not finite
            return math.inf
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return math.nan
    return float(np.abs(rounded.astype(np.float64) - exact).mean())


def draw_singly(pipeline: SiTPipeline, options: SamplingOptions) -> np.ndarray:
    """Draw the images of the trial one by one: (B, H, W, C) uint8."""
    return np.concatenate([draw_images(pipeline, [i], options) for i in range(NUM_CHECKED)])


def networks(pipeline: SiTPipeline) -> list[nn.Module]:
    """The networks of a pipeline."""
    return [network for network in (pipeline.transformer, pipeline.vae) if network is not None]


def network_dtype(pipeline: SiTPipeline) -> str:
    """The name of the data type of the transformer."""
    return str(pipeline.transformer.dtype).removeprefix("torch.")


def with_own_networks(pipeline: SiTPipeline) -> SiTPipeline:
    """A pipeline with copies of the networks."""
    changed = copy.copy(pipeline)
    changed.transformer = copy.deepcopy(pipeline.transformer)
    if pipeline.vae is not None:
        changed.vae = copy.deepcopy(pipeline.vae)
    return changed


def cast_pipeline(pipeline: SiTPipeline, dtype: str) -> SiTPipeline:
    """Cast the networks of a pipeline in place to a data type of PyTorch of this name, and return the pipeline."""
    for network in networks(pipeline):
        nn.Module.to(network, dtype=getattr(torch, dtype))  # diffusers' own method warns where nothing is amiss
    return pipeline
