"""Runs of a duel: solver steps, and the device of the samples."""

from pathlib import Path

import pytest

from sit_atconv.evaluation.duel_options import Duel
from sit_atconv.evaluation.duel_run import DuelRun, Scripts

REPO = Path(__file__).parents[2]
SCRIPTS = Scripts(REPO / "train" / "train_sit.py", REPO / "eval" / "sample.py")


def test_solver_steps_are_the_pipelines_where_none_are_given(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "A-seed0" / "pipeline")
    options = {"output": str(tmp_path), "models": {"A": {}, "B": {}}, "metrics": {"extractor": "pixels"}}
    for solver, steps in ((None, 25), ("euler", 50)):
        settings = Duel(**options, sampling={"num_samples": 4, "solver": solver})
        assert DuelRun(settings, SCRIPTS, "A", 0).solver_steps() == [steps]


def test_samples_are_drawn_on_the_device_of_the_duel(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    options = {"output": str(tmp_path), "models": {"A": {}, "B": {}}, "metrics": {"extractor": "pixels"}}
    settings = Duel(**options, sampling={"num_samples": 2}, device="abacus")
    with pytest.raises(ValueError, match="device='abacus'"):
        DuelRun(settings, SCRIPTS, "A", 0).sample(tmp_path / "pipeline", tmp_path / "samples", 1)


def test_scripts_that_are_missing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_sit\.py does not exist; run a duel from a complete checkout"):
        Scripts(tmp_path / "train_sit.py", SCRIPTS.sample)
