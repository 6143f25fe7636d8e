"""The sweep: what is tried and dropped, that differences are paired, that results are kept, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sit_atconv import SiTPipeline
from sit_atconv.evaluation import sweep
from sit_atconv.evaluation.feature_statistics import FeatureStatistics
from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.sampling import flatten_pixels, generate
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.evaluation.sweep import compare, measure_sweep, search
from sit_atconv.evaluation.sweep_options import SweepOptions
from sit_atconv.evaluation.sweep_report import heat_map, search_table, write_sweep
from sit_atconv.evaluation.sweep_settings import SAVED, Setting, grid, open_averages

WHOLE = (0.0, 1.0)


@pytest.fixture
def options(tiny_pipeline, tmp_path):
    """A sweep of a model of digits' shape, of two scales and 24 images."""
    tiny_pipeline(in_channels=1, num_classes=10).save_pretrained(tmp_path / "pipeline")
    values = {"scales": [1.0, 3.0], "intervals": [WHOLE], "num_samples": 24, "num_inference_steps": 2, "device": "cpu"}
    return SweepOptions(str(tmp_path / "pipeline"), "digits", str(tmp_path / "out"), **values)


def test_grid_has_each_setting_once():
    settings = grid(["a", "b"], [1, 2], [WHOLE, (0.2, 0.8)])
    expected = [Setting(name, *rest) for name in "ab" for rest in ((1, WHOLE), (2, WHOLE), (2, (0.2, 0.8)))]
    assert settings == expected
    assert str(settings[0]) == "a, no guidance" and str(settings[2]) == "a, scale 2, 0.2–0.8"


class Shifted:
    """Features of which the real mean is 0: the same noise for all settings, shifted by (scale − 1)."""

    averages = ()

    def __init__(self, num_samples):
        self.options, self.drawn = SamplingOptions(num_samples), {}

    def features(self, setting, start, stop):
        self.drawn.setdefault(setting.scale, []).append((start, stop))
        noise = np.random.default_rng(0).normal(size=(self.options.num_samples, 3))
        return noise[start:stop] + (setting.scale - 1)


def test_hopeless_settings_are_dropped_and_close_ones_are_not():
    real = FeatureStatistics.from_moments(np.zeros(3), np.eye(3), 1000)
    settings = [Setting("a", scale, WHOLE) for scale in (1.0, 1.001, 4.0)]
    drawing = Shifted(64)
    rows, finalists = search(settings, drawing, real)
    assert drawing.drawn == {1.0: [(0, 16), (16, 32), (32, 64)], 1.001: [(0, 16), (16, 32), (32, 64)], 4.0: [(0, 16)]}
    assert [row["dropped"] for row in rows] == [False, False, True] and [row["images"] for row in rows] == [64, 64, 16]
    assert set(finalists[:2]) == set(settings[:2]) and finalists[2] == settings[2]
    assert min(row["behind"] for row in rows) == 0
    assert search_table(rows).splitlines()[-1].startswith("| a | 4 | 0–1 | 16 |")


def test_differences_are_paired():
    """A setting that is worse by the same in every resample has no error, however few images there are."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 2))
    wide = [np.concatenate([images, np.full((40, 1), shift)], axis=1) for shift in (0.0, 2.0)]
    real = FeatureStatistics.from_moments(np.zeros(3), np.diag([1.0, 1.0, 0.0]), 100)
    a, b = Setting("a", 1.0, WHOLE), Setting("b", 1.0, WHOLE)
    compared = compare({a: wide[0], b: wide[1]}, real, 20)
    assert compared[b]["behind"] == pytest.approx(4) and compared[b]["standard_error"] < 1e-6
    moments = wide[1].mean(0), np.cov(wide[1], rowvar=False)
    assert compared[b]["fid"] == pytest.approx(frechet_distance(*moments, real.mean, real.covariance), rel=1e-6)


def test_scores_are_those_of_the_images_and_results_are_kept(options, digit_images, monkeypatch):
    text = write_sweep(options)
    output = Path(options.output)
    row = next(row for row in json.loads((output / "sweep.json").read_text())["confirmation"] if row["scale"] == 3)
    pipeline = SiTPipeline.from_pretrained(options.folder)
    pipeline.set_progress_bar_config(disable=True)
    sampling = SamplingOptions(24, seed=1, batch_size=500, guidance_scale=3.0, num_inference_steps=2)
    images = np.concatenate(list(generate(pipeline, [i % 10 for i in range(24)], sampling)))
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in map(flatten_pixels, (images, digit_images()))]
    assert row["fid"] == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-4)
    assert f"{row['fid']:.4f}" in text and "Choice: saved, " in text
    with Image.open(output / "sweep.png") as picture:
        assert picture.width > 100

    drawn = []
    monkeypatch.setattr(sweep.Drawing, "_draw", lambda self, setting, *part: drawn.append(setting) or 1 / 0)
    assert write_sweep(options) == text  # nothing is drawn again
    with pytest.raises(ZeroDivisionError):
        measure_sweep(replace(options, scales=[1.0, 2.0, 3.0]))
    assert drawn == [Setting(SAVED, 2.0, WHOLE)]  # only what is new
    for changes in ({"seed": 5}, {"num_samples": 32}):
        with pytest.raises(ValueError, match=r"output=.* holds results with .*; name another folder"):
            measure_sweep(replace(options, **changes))
    with pytest.raises(ValueError, match=r"holds results with folder=.*pipeline', not .*other'; name another folder"):
        measure_sweep(replace(options, folder=str(shutil.copytree(options.folder, output.parent / "other"))))
    damaged = next((output / "features").glob("*-3.0-*"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"npy is damaged .*; remove it, and it is made again"):
        measure_sweep(options)


def test_unusable_options_are_refused(options, tiny_pipeline, tmp_path):
    for changes, message in (
        ({"scales": []}, r"scales=\[\] leaves nothing to try"),
        ({"averages": []}, r"averages=\[\] leaves nothing to try"),
        ({"scales": [-1.0]}, "guidance_scale=-1.0"),
        ({"intervals": [(0.5, 0.2)]}, "guidance_interval=.* must be"),
        ({"num_samples": 8}, "num_samples=8 must be a whole number of at least 16"),
        ({"folder": "nowhere"}, "folder='nowhere' is not a pipeline folder"),
        ({"stds": [0.1]}, "stds=.* is no run folder, and holds one average; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_sweep(replace(options, **changes))
    tiny_pipeline(in_channels=1, num_classes=10, class_dropout_prob=0.0).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"guidance_scale=3\.0: this model was trained without class dropout"):
        measure_sweep(replace(options, folder=str(tmp_path / "other")))
    assert not (tmp_path / "out").exists()


def test_heat_map_has_a_cell_for_each_setting():
    settings = grid(["a", "b"], [1, 2], [WHOLE, (0.2, 0.8)])
    rows = [{**sweep.asdict_of(each), "behind": i / 10, "dropped": i == 5} for i, each in enumerate(settings)]
    figure = heat_map(rows)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    assert [text.get_text() for text in panels[1].texts] == ["0.3", "0.4", "0.3", "(0.5)"]


def test_averages_of_a_run(options, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("data: digits\n")
    with pytest.raises(ValueError, match="holds no checkpoints; give its pipeline"):
        open_averages(str(tmp_path / "run"), None, None)
    [average] = open_averages(options.folder, None, None)
    average.load(torch.device("cpu"))
    assert average.name == SAVED and len(average.sha256) == 64
