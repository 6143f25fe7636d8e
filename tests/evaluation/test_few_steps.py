"""Quality against network calls: the samplers of each kind of pipeline, what is measured, and what is kept."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.evaluation.few_steps import few_step_samplers, measure_few_steps, quality_table
from sit_atconv.evaluation.few_steps_report import picture_strip, write_few_steps
from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.sampling import flatten_pixels, generate
from sit_atconv.evaluation.sampling_options import SamplingOptions, balanced_labels
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler

OPTIONS = {"in_channels": 1, "num_classes": 10}


@pytest.fixture
def folders(tiny_transformer, tmp_path):
    """(name, folder) of a flow and of a model of mean velocities, with digits' shape."""
    flow = SiTPipeline(tiny_transformer(**OPTIONS), InterpolantODEScheduler())
    mean_flow = SiTPipeline(tiny_transformer(**OPTIONS, step_conditioning="span"), MeanFlowScheduler())
    flow.save_pretrained(tmp_path / "flow")
    mean_flow.save_pretrained(tmp_path / "mean")
    return [("flow", str(tmp_path / "flow")), ("mean", str(tmp_path / "mean"))]


def test_samplers_and_their_steps(tiny_pipeline):
    names = [(name, steps) for name, _, steps in few_step_samplers(tiny_pipeline(), [1, 4, 5])]
    assert names == [
        *[("Euler", 1), ("Euler", 4), ("Euler", 5)],
        ("midpoint", 2),
        ("heun3", 1),
        *[("DPM-Solver++", 1), ("DPM-Solver++", 4), ("DPM-Solver++", 5)],
        *[("SDE", 4), ("SDE", 5)],
    ]
    mean_flow = tiny_pipeline(MeanFlowScheduler(), step_conditioning="span")
    assert [(name, steps) for name, _, steps in few_step_samplers(mean_flow, [1, 4])] == [
        ("MeanFlow", 1),
        ("MeanFlow", 4),
    ]
    curved = tiny_pipeline(InterpolantODEScheduler(path="gvp"))
    assert "DPM-Solver++" not in {name for name, *_ in few_step_samplers(curved, [4])}


def test_measurements_are_those_of_the_images(folders, tmp_path, digit_images):
    rows = measure_few_steps(folders, "digits", str(tmp_path / "out"), budgets=[1, 4], num_samples=40, device="cpu")
    assert [row["network_calls"] for row in rows] == [1, 4, 4, 3, 1, 4, 4, 1, 4]  # of each image
    row = next(row for row in rows if row["sampler"] == "midpoint")
    pipeline = SiTPipeline.from_pretrained(folders[0][1])
    pipeline.set_progress_bar_config(disable=True)
    images = np.concatenate(
        list(generate(pipeline, balanced_labels(range(40), 10), SamplingOptions(num_inference_steps=2)))
    )
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in map(flatten_pixels, (images, digit_images()))]
    assert row["fid"] == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-6)
    assert 0 <= row["class_accuracy"] < 0.5  # of an untrained model
    assert "| flow: midpoint | 4 |" in quality_table(rows) and "| mean | 1 |" in quality_table(rows)


@pytest.mark.slow
def test_results_are_kept_and_continued(folders, tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    options = {"reference": "digits", "budgets": [1], "num_samples": 20, "device": "cpu"}
    first = write_few_steps(folders[:1], output, **options)
    before = json.loads((tmp_path / "out/few-steps.json").read_text())
    both = write_few_steps(folders, output, **options)
    after = json.loads((tmp_path / "out/few-steps.json").read_text())
    assert after["rows"][: len(before["rows"])] == before["rows"]  # not measured again: the times are the same
    assert both.startswith(first) and "| mean | 1 |" in both
    with Image.open(tmp_path / "out/pictures.png") as picture:
        assert picture.width > picture.height
    less = write_few_steps(folders, output, **options, samplers=["MeanFlow", "Euler"])
    assert less == both  # what is there stays, and is shown
    few = write_few_steps(folders, tmp_path / "few", **options, samplers=["MeanFlow", "Euler"])
    assert few.count("\n") == 3 and "| flow: Euler | 1 |" in few and "| mean | 1 |" in few
    with pytest.raises(ValueError, match="num_samples=20, not 30; name another folder"):
        measure_few_steps(folders, output=output, **{**options, "num_samples": 30})
    assert json.loads((tmp_path / "out/few-steps.json").read_text()) == after


def test_pictures_of_one_column_are_of_one_noise(tiny_pipeline):
    """An untrained flow of many calls: Euler's single step and the midpoint method start from the same noise."""
    figure = picture_strip({"flow": tiny_pipeline(**OPTIONS)}, calls=[1, 2])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 call", "2 calls"]
    panel = torch.from_numpy(np.asarray(axes.images[0].get_array(), dtype=np.float32))
    top, bottom = panel[:8, :8], panel[9:17, :8]
    assert torch.corrcoef(torch.stack([top.flatten(), bottom.flatten()]))[0, 1] > 0.5
