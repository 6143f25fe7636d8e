"""Paired differences in closed form, and samples of the report that are those of the scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_atconv.evaluation.comparison import first_samples, paired_differences
from sit_atconv.evaluation.evaluated_runs import Run
from sit_atconv.evaluation.records import describe_pipeline
from sit_atconv.evaluation.sampling import draw_images
from sit_atconv.evaluation.sampling_dtype import cast_pipeline
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        (None, {"solver": "euler"}),
        (None, {"guidance_scale": 4.0, "guidance_interval": (0.0, 0.4)}),
        (MeanFlowScheduler(), {"dtype": "bfloat16"}),
    ],
)
def test_samples_that_were_not_kept_are_drawn_again_as_reported(tiny_pipeline, tmp_path, scheduler, changes):
    pipeline = tiny_pipeline(scheduler, step_conditioning="span")
    options = SamplingOptions(**{"num_samples": 10, "num_inference_steps": 2, "dtype": "float32", **changes})
    pipeline.save_pretrained(tmp_path / "pipeline")
    pipeline = options.configure(pipeline)
    report = {**options.resolve(pipeline).record(), **describe_pipeline(pipeline), "samples": "gone", "step": 1}
    run = Run(tmp_path, "A", 0, {}, [json.loads(json.dumps(report))])
    expected = torch.from_numpy(draw_images(cast_pipeline(pipeline, options.dtype), range(10), options) / 255).permute(
        0, 3, 1, 2
    )
    torch.testing.assert_close(first_samples(run, torch.device("cpu"), 5), expected, rtol=0, atol=1.1 / 255)


@pytest.mark.parametrize("name", ["Nowhere", "utils", "SiTPipeline", "UNet2DModel", "__name__"])
def test_schedulers_that_are_none_are_named(tiny_pipeline, tmp_path, name):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "pipeline")
    record = SamplingOptions(num_samples=2, num_inference_steps=2, dtype="float32").resolve(pipeline).record()
    report = {**record, "scheduler": {"class": name, "config": {}}, "samples": "gone", "step": 1, "file": "a/fid.json"}
    with pytest.raises(ValueError, match=rf"a/fid\.json: the scheduler {name} is unknown"):
        first_samples(Run(tmp_path, "A", 0, {}, [report]), torch.device("cpu"), 5)


def run_with_fid(
    model: str, seed: int, fid: float, resampled: list[float] | None = None, sampling_seed: int = 0
) -> Run:
    report = {"step": 1, "fid": fid, "seed": sampling_seed, "fid_resampled": resampled or []}
    return Run(Path(f"{model}-seed{seed}"), model, seed, {}, [report])


def test_differences_are_paired_by_seed():
    runs = [run_with_fid("A", 0, 10.0), run_with_fid("B", 0, 8.0), run_with_fid("C", 2, 1.0)]
    runs += [run_with_fid("B", 1, 7.0), run_with_fid("A", 1, 11.0)]
    of_b, of_c = paired_differences(runs)
    assert [(entry["seed"], entry["difference"]) for entry in of_b["per_seed"]] == [(0, -2.0), (1, -4.0)]
    half = 12.7062  # Student's t of one degree of freedom; the standard error is 1
    assert of_b["mean"] == -3.0
    assert of_b["interval"] == pytest.approx([-3 - half, -3 + half], abs=1e-4)
    assert of_c == {"model": "C", "per_seed": []}


def test_resamples_are_paired_if_they_are_of_the_same_images():
    resampled = np.arange(41.0).tolist()
    baseline = run_with_fid("A", 0, 10.0, resampled)
    cases = [
        (run_with_fid("B", 0, 9.0, [value - 1 for value in resampled]), [-1.0, -1.0]),
        (run_with_fid("B", 0, 9.0, [2 * value for value in resampled]), [-20.0, 18.0]),
        (run_with_fid("B", 0, 9.0, resampled[1:]), None),
        (run_with_fid("B", 0, 9.0, resampled, sampling_seed=1), None),
        (run_with_fid("B", 0, 9.0), None),
    ]
    for run, expected in cases:
        (row,) = paired_differences([baseline, run])
        (entry,) = row["per_seed"]
        assert entry["difference"] == row["mean"] == -1.0 and row["interval"] is None
        assert entry["interval"] == (expected and pytest.approx(expected))
