"""The sample grids of a run."""

import sys

import torch
from accelerate import Accelerator

from ..models.codecs import vae_image_channels
from ..models.finite import NotFiniteError
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.randomness import image_generator
from .config import TrainConfig

GRID_CLASSES, GRID_COLUMNS = 10, 8
MIN_TILE = 64  # pixels; smaller images are enlarged


def sample_grid(config: TrainConfig, pipeline: SiTPipeline, accelerator: Accelerator) -> torch.Tensor:
    """Draw the first classes, one class per row, from the same noise at every call.

    Processes take turns with the rows, so that none waits for another; all of them make the same number of network
    calls, as sharded models require.

    Returns:
        (rows · GRID_COLUMNS, C, H, W) in [0, 1], on every process.
    """
    pipeline.set_progress_bar_config(disable=True)
    rows = min(GRID_CLASSES, pipeline.transformer.config.num_classes)
    drawn = []
    for first in range(0, rows, accelerator.num_processes):
        label = (first + accelerator.process_index) % rows
        try:
            images = pipeline(
                [label] * GRID_COLUMNS,
                guidance_scale=config.sample_guidance_scale,
                num_inference_steps=config.sample_steps,
                generator=[image_generator(config.seed, label * GRID_COLUMNS + i) for i in range(GRID_COLUMNS)],
                output_type="pt",
            ).images
        except NotFiniteError as error:
            # Black pictures: neither the run nor the other processes, which wait for these, may end because of them.
            print(f"the samples of class {label} are black: {error}", file=sys.stderr)
            model = pipeline.transformer.config
            channels = model.in_channels if pipeline.vae is None else vae_image_channels(pipeline.vae)
            side = model.sample_size * pipeline.vae_scale_factor
            images = torch.zeros(GRID_COLUMNS, channels, side, side, device=accelerator.device)
        drawn.append(accelerator.gather(images.contiguous()).cpu())
    return torch.cat(drawn)[: rows * GRID_COLUMNS]
