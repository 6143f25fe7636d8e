"""Samples in a comparison's report are those of the scores."""

import json

import pytest
import torch

from sit_atconv.evaluation.comparison import first_samples
from sit_atconv.evaluation.evaluated_runs import Run
from sit_atconv.evaluation.records import describe_pipeline
from sit_atconv.evaluation.sampling import SamplingOptions, draw_images


@pytest.mark.parametrize("changes", [{"solver": "euler"}, {"guidance_scale": 4.0, "guidance_interval": (0.0, 0.4)}])
def test_samples_that_were_not_kept_are_drawn_again_as_reported(tiny_pipeline, tmp_path, changes):
    pipeline, options = tiny_pipeline(), SamplingOptions(num_samples=10, num_inference_steps=2, **changes)
    pipeline.save_pretrained(tmp_path / "pipeline")
    pipeline = options.configure(pipeline)
    report = {**options.resolve(pipeline).record(), **describe_pipeline(pipeline), "samples": "gone", "step": 1}
    run = Run(tmp_path, "A", 0, {}, [json.loads(json.dumps(report))])
    expected = torch.from_numpy(draw_images(pipeline, range(10), options) / 255).permute(0, 3, 1, 2)
    torch.testing.assert_close(first_samples(run, torch.device("cpu"), 5), expected, rtol=0, atol=1.5 / 255)
