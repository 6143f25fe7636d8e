"""The sample grids of a run."""

import torch
from accelerate import Accelerator

from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.randomness import image_generator
from .config import TrainConfig

GRID_CLASSES, GRID_COLUMNS = 10, 8


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
        images = pipeline(
            [label] * GRID_COLUMNS,
            guidance_scale=config.sample_guidance_scale,
            num_inference_steps=config.sample_steps,
            generator=[image_generator(config.seed, label * GRID_COLUMNS + i) for i in range(GRID_COLUMNS)],
            output_type="pt",
        ).images
        drawn.append(accelerator.gather(images.contiguous()).cpu())
    return torch.cat(drawn)[: rows * GRID_COLUMNS]
