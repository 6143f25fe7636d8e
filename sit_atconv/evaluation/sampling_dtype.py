"""The data type in which pipelines are sampled: bfloat16 on a CPU with AMX, if their images stay the same to the eye.

AMX (Advanced Matrix Extensions) multiplies matrices of bfloat16 several times as fast as other instructions multiply
those of float32. Whether a model bears the rounding is tried on a few images, which are drawn in both.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..pipelines.pipeline_sit import SiTPipeline
from ..pipelines.schedulers import with_scheduler
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..utils.environment import has_amx
from ..utils.text import counted
from .sampling import draw_images
from .sampling_options import SamplingOptions

NUM_CHECKED = 4  # images
CHECKED_STEPS = 4  # with more steps, images differ less, since the rounding of one is independent of that of the others
LARGEST_DIFFERENCE = 1.0  # grey levels of 255, on average over all values of the images


def resolve_dtype(pipelines: Sequence[SiTPipeline], options: SamplingOptions) -> SamplingOptions:
    """Return the options with the data type in place of "auto", the same for all of these pipelines.

    It is bfloat16 on a CPU with AMX if the images of each pipeline bear it, which takes about as long as half an image
    of each, and float32 otherwise. On a CPU with AMX, a line says which it is, and why.

    Args:
        pipelines: the pipelines in float32, with the sampler that `options.configure` gave them.
        options: how images are drawn; the guidance and, if it is smaller, the number of steps are those of the check.

    Raises:
        ValueError: if an image is not finite in float32.
    """
    if options.dtype != "auto":
        return options
    if not all(has_amx(pipeline._execution_device) for pipeline in pipelines):
        return replace(options, dtype="float32")
    difference = max(bfloat16_difference(pipeline, options) for pipeline in pipelines)
    images = counted(NUM_CHECKED, "image") + (f" of each of {len(pipelines)} pipelines" if len(pipelines) > 1 else "")
    found = f"{images} differ by {difference:.2g} grey levels of 255 on average"
    if np.isinf(difference):
        found = "an image is not finite"
    if difference > LARGEST_DIFFERENCE:
        print(f"sampling in float32: in bfloat16, for which this CPU has AMX, {found}", flush=True)
        return replace(options, dtype="float32")
    print(f"sampling in bfloat16, for which this CPU has AMX: {found} (--dtype float32 switches it off)", flush=True)
    return replace(options, dtype="bfloat16")


def bfloat16_difference(pipeline: SiTPipeline, options: SamplingOptions) -> float:
    """Mean absolute difference of the images in bfloat16 and in float32, in grey levels of 255; infinity for NaN.

    The images are the first of seed 0, in at most four steps, of Euler's method for an ODE.

    Args:
        pipeline: the pipeline in float32.
        options: the guidance, and the number of steps if it is smaller.
    """
    scheduler = pipeline.scheduler
    if isinstance(scheduler, InterpolantODEScheduler):  # an adaptive solver would take any number of calls
        scheduler = InterpolantODEScheduler.from_config(scheduler.config, solver="euler")
    pipeline = with_scheduler(pipeline, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    steps = min(options.num_inference_steps or CHECKED_STEPS, CHECKED_STEPS)
    options = replace(options, seed=0, num_inference_steps=steps)
    exact = draw_images(pipeline, range(NUM_CHECKED), options)
    try:
        rounded = draw_images(cast_pipeline(with_own_networks(pipeline), "bfloat16"), range(NUM_CHECKED), options)
    except ValueError:  # an image that is not finite
        return float("inf")
    return float(np.abs(rounded.astype(np.float64) - exact).mean())


def with_own_networks(pipeline: SiTPipeline) -> SiTPipeline:
    """A pipeline with copies of the networks."""
    changed = copy.copy(pipeline)
    changed.transformer = copy.deepcopy(pipeline.transformer)
    if pipeline.vae is not None:
        changed.vae = copy.deepcopy(pipeline.vae)
    return changed


def cast_pipeline(pipeline: SiTPipeline, dtype: str) -> SiTPipeline:
    """Cast the networks of a pipeline in place to a data type of PyTorch of this name, and return the pipeline."""
    for network in (pipeline.transformer, pipeline.vae):
        if network is not None:
            nn.Module.to(network, dtype=getattr(torch, dtype))  # diffusers' own method warns where nothing is amiss
    return pipeline
