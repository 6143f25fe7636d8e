"""The sample grids of a run."""

import types

import torch
from accelerate import Accelerator

from sit_atconv.training.samples import GRID_COLUMNS, sample_grid


def test_broken_weights_make_black_samples_and_a_message(tiny_pipeline, capsys):
    """The run goes on, and so do the other processes, which wait for the samples of this one."""
    pipeline = tiny_pipeline()
    with torch.no_grad():
        pipeline.transformer.proj_out.bias[0] = float("nan")
    config = types.SimpleNamespace(sample_guidance_scale=1.0, sample_steps=2, seed=0)
    images = sample_grid(config, pipeline, Accelerator(cpu=True))
    assert images.shape == (5 * GRID_COLUMNS, 3, 8, 8)
    assert not images.any()
    assert "the samples of class 4 are black: " in (message := capsys.readouterr().err)
    assert "proj_out.bias" in message
