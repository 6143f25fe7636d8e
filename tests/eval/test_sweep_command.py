"""eval/sweep.py and eval/caches.py: what they pass on, and what they refuse."""

import json

import caches
import pytest
import sweep

from sit_atconv.evaluation import cache_error, sweep_report


def test_options_of_a_sweep_are_passed_on(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(sweep_report, "write_sweep", lambda options: asked.append(options) or "| table |")
    output = str(tmp_path / "out")
    arguments = [
        "runs/a",
        "--reference",
        "digits",
        "--output",
        output,
        "--scales",
        "[1, 2]",
        "--intervals",
        "[[0.2, 1]]",
    ]
    sweep.main([*arguments, "--stds", "[0.1]"])
    [options] = asked
    assert (options.folder, options.scales, options.intervals, options.stds) == ("runs/a", [1, 2], [(0.2, 1)], [0.1])
    assert "| table |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main([*arguments, "--intervals", "[[0.5, 0.2]]"])
    assert "guidance_interval=(0.5, 0.2) must be (start, end)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_caches_are_compared(tiny_pipeline, tmp_path, capsys, monkeypatch):
    for name, value in {"FINE_CALLS": 4, "BUDGETS": (4,), "MAGNITUDE_THRESHOLDS": (), "TAYLOR_INTERVALS": ()}.items():
        monkeypatch.setattr(cache_error, name, value)
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    command = [str(tmp_path / "pipeline"), "--num_images", "1", "--output", str(tmp_path / "report.json")]
    caches.main(command)
    assert "| none | 1.00 | " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 5
    with pytest.raises(SystemExit):
        caches.main(command)  # the report is there already
    assert "output" in capsys.readouterr().err
