"""eval/samplers.py: the table that it prints, the report that it writes, and what it refuses."""

import json

import pytest
import samplers

from sit_atconv.evaluation import solver_error


def test_command_line(tiny_pipeline, tmp_path, capsys, monkeypatch):
    for name, value in {"FIXED_STEP": ("euler",), "MULTISTEP": (), "ADAPTIVE": (), "BUDGETS": (2,)}.items():
        monkeypatch.setattr(solver_error, name, value)
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    command = [str(tmp_path / "pipeline"), "--num_images", "1", "--output", str(tmp_path / "report.json")]
    samplers.main(command)
    assert "| euler | 2 steps | 2 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 5
    with pytest.raises(SystemExit):
        samplers.main(command)  # the report is there already
    assert "output" in capsys.readouterr().err


def test_missing_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        samplers.main([str(tmp_path)])
    assert "not a pipeline folder" in capsys.readouterr().err
