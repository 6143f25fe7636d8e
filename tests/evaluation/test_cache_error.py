"""What caches cost and save: the rows of the comparison, and the norms that MagCache is given."""

import pytest
import torch

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.evaluation import cache_error
from sit_atconv.evaluation.cache_error import cache_table, compare_caches, residual_norms


@pytest.mark.filterwarnings("ignore:a cache spoils")
def test_each_cache_is_compared_and_leaves_nothing(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(cache_error, "FINE_CALLS", 40)
    pipeline = tiny_pipeline(InterpolantODEScheduler(solver="midpoint"), num_layers=3)
    pipeline.set_progress_bar_config(disable=True)
    rows = compare_caches(pipeline, num_images=2, budgets=[8, 12])
    assert not pipeline.transformer.is_cache_enabled
    found = {(row["cache"], row["setting"], row["network_calls"]): row for row in rows}
    assert {calls for *_, calls in found} == {8, 12} and len(rows) == 2 * 11
    for row in rows:
        assert (row["computed"] == 1) == (
            row["cache"] == "none" or row["rms_error"] == pytest.approx(_plain(rows, row))
        )
    assert found["Taylor", "interval 2", 8]["computed"] == pytest.approx(5 / 8)  # three at first, then each second
    assert found["none", "", 12]["rms_error"] < found["none", "", 8]["rms_error"]
    table = cache_table(rows)
    assert "| cache | 8 calls: share | error | 12 calls: share | error |" in table
    assert f"| none | 1.00 | {found['none', '', 8]['rms_error']:.2e} | 1.00 |" in table


def _plain(rows, like):
    return next(
        row["rms_error"] for row in rows if row["cache"] == "none" and row["network_calls"] == like["network_calls"]
    )


def test_norms_of_what_the_blocks_add(tiny_transformer):
    model = tiny_transformer()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    model.blocks[-1].register_forward_hook(lambda block, args, output: seen.append(output))
    with torch.no_grad(), residual_norms(model) as norms:
        for t in (0.2, 0.6):
            model(torch.ones(2, 3, 8, 8), t, torch.tensor([0, 1]))
    model(torch.ones(1, 3, 8, 8), 0.5, torch.tensor([0]))
    expected = [(after - before).square().sum(-1).sqrt() for before, after in (seen[:2], seen[2:4])]
    torch.testing.assert_close(norms, expected)


@pytest.mark.filterwarnings("ignore:a cache spoils")
def test_equal_numbers_of_calls_are_solved_once(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(cache_error, "FINE_CALLS", 8)
    pipeline = tiny_pipeline(InterpolantODEScheduler(solver="midpoint"))
    pipeline.set_progress_bar_config(disable=True)
    rows = compare_caches(pipeline, num_images=1, budgets=[4, 5])
    assert {row["network_calls"] for row in rows} == {4} and len(rows) == 11


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (InterpolantSDEScheduler(), "InterpolantSDEScheduler draws other noise in each solve; give"),
        (InterpolantODEScheduler(solver="dopri5"), "the solver 'dopri5' chooses its own number of network calls"),
    ],
)
def test_solves_that_cannot_be_compared_are_refused(scheduler, message, tiny_pipeline):
    with pytest.raises(ValueError, match=message):
        compare_caches(tiny_pipeline(scheduler))


def test_a_budget_below_one_step_is_refused(tiny_pipeline):
    pipeline = tiny_pipeline(InterpolantODEScheduler(solver="midpoint"))
    with pytest.raises(ValueError, match="budgets=1 must be a whole number of at least 2"):
        compare_caches(pipeline, budgets=[1])
