"""eval/few_steps.py: what it passes on, and what it refuses."""

import few_steps
import pytest


def test_models_are_named(monkeypatch, capsys, tmp_path):
    asked = {}

    def fake(named, **options):
        asked.update(options, named=named)
        return "| table |"

    monkeypatch.setattr("sit_atconv.evaluation.few_steps_report.write_few_steps", fake)
    monkeypatch.setattr(few_steps, "check_pipeline_folder", lambda folder: None)
    arguments = ["flow=runs/a=b", "mean flow=runs/c", "--reference", "digits", "--output", str(tmp_path / "out")]
    few_steps.main([*arguments, "--budgets", "[1, 2]"])
    assert asked["named"] == [("flow", "runs/a=b"), ("mean flow", "runs/c")] and asked["budgets"] == [1, 2]
    assert "| table |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        few_steps.main(["runs/a", *arguments])
    assert "'runs/a' names no model; write NAME=PIPELINE, such as flow=runs/a" in capsys.readouterr().err


def test_missing_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        few_steps.main([f"flow={tmp_path}/none", "--reference", "digits", "--output", str(tmp_path / "out")])
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
