import json

import pytest
import samplers


@pytest.fixture
def few_samplers(monkeypatch):
    monkeypatch.setattr(samplers, "FIXED_STEP", {name: samplers.FIXED_STEP[name] for name in ("euler", "heun")})
    monkeypatch.setattr(samplers, "ADAPTIVE", {"dopri5": None})
    monkeypatch.setattr(samplers, "MULTISTEP", ())
    monkeypatch.setattr(samplers, "TOLERANCES", (1e-3,))
    monkeypatch.setattr(samplers, "DIFFUSERS", {"FlowMatchEuler": samplers.DIFFUSERS["FlowMatchEuler"]})


def test_errors_shrink_and_calls_are_counted(tiny_pipeline, few_samplers):
    pipeline = tiny_pipeline()
    scheduler = pipeline.scheduler
    rows = samplers.compare_samplers(pipeline, num_images=2, budgets=[1, 4, 16])
    by_name = {(row["sampler"], row["setting"]): row for row in rows}
    assert len(by_name) == 9  # no step of heun costs one call
    assert [by_name["euler", f"{n} steps"]["network_calls"] for n in (1, 4, 16)] == [1, 4, 16]
    assert [by_name["heun", f"{n} steps"]["network_calls"] for n in (2, 8)] == [4, 16]
    for name, few, many in (("euler", 4, 16), ("heun", 2, 8), ("diffusers FlowMatchEuler", 4, 16)):
        assert by_name[name, f"{many} steps"]["rms_error"] < 0.5 * by_name[name, f"{few} steps"]["rms_error"]
    assert by_name["diffusers FlowMatchEuler", "16 steps"]["rms_error"] == pytest.approx(
        by_name["euler", "16 steps"]["rms_error"], rel=1e-3
    )
    assert by_name["dopri5", "rtol 0.001"]["rms_error"] < 1e-2
    assert pipeline.scheduler is scheduler  # as it was


def test_command_line(tiny_pipeline, few_samplers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(samplers, "BUDGETS", (2,))
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    command = [str(tmp_path / "pipeline"), "--num_images", "1", "--output", str(tmp_path / "report.json")]
    samplers.main(command)
    assert "| euler | 2 steps | 2 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 4
    with pytest.raises(SystemExit):
        samplers.main(command)  # the report is there already
    assert "output" in capsys.readouterr().err


def test_missing_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        samplers.main([str(tmp_path)])
    assert "no pipeline folder" in capsys.readouterr().err
