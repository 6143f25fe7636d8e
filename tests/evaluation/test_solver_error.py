import pytest

from sit_atconv.evaluation import solver_error
from sit_atconv.evaluation.solver_error import compare_samplers


@pytest.fixture
def few_samplers(monkeypatch):
    monkeypatch.setattr(solver_error, "FIXED_STEP", {name: solver_error.FIXED_STEP[name] for name in ("euler", "heun")})
    monkeypatch.setattr(solver_error, "ADAPTIVE", {"dopri5": None})
    monkeypatch.setattr(solver_error, "MULTISTEP", ())
    monkeypatch.setattr(solver_error, "TOLERANCES", (1e-3,))
    monkeypatch.setattr(solver_error, "DIFFUSERS", {"FlowMatchEuler": solver_error.DIFFUSERS["FlowMatchEuler"]})


def test_errors_shrink_and_calls_are_counted(tiny_pipeline, few_samplers):
    pipeline = tiny_pipeline()
    scheduler = pipeline.scheduler
    rows = compare_samplers(pipeline, num_images=2, budgets=[1, 4, 16])
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
