"""Columns of a comparison have equal decimals, and say which way is better."""

from pathlib import Path

from sit_atconv.evaluation.comparison_data import csv_text, score_rows
from sit_atconv.evaluation.comparison_tables import cost_table, difference_table, mean_fids, score_table
from sit_atconv.evaluation.evaluated_runs import Run
from sit_atconv.evaluation.model_costs import ModelCost


def run(model: str, seed: int, fid: float, **report) -> Run:
    reports = [{"step": 10, "fid": fid, "precision": 0.5, **report}]
    return Run(Path(model), model, seed, {}, reports, hours={10: 2.0})


def test_scores_have_equal_decimals_and_arrows():
    runs = [run("SA", 0, 123.456, fid_interval=[120.0, 126.12]), run("ATConv", 0, 9.0, seconds_per_image=0.5)]
    table = score_table(runs)
    assert table.head == ["model", "seed", "steps", "hours", "FID ↓", "precision ↑", "calls/image", "ms/image"]
    assert table.rows[0] == ["SA", 0, 10, "2", "123.5 [120.0, 126.1]", "0.5000", "", ""]
    assert table.rows[1] == ["ATConv", 0, 10, "2", "9.0", "0.5000", "", "500"]
    assert mean_fids([*runs, run("SA", 1, 125.456)]) == "124.5, 9.0 (means of 1 or 2 seeds, lower is better)"


def test_differences_have_equal_decimals():
    per_seed = [
        {"seed": 0, "difference": -12.0, "interval": [-20.0, 1.25]},
        {"seed": 1, "difference": 3, "interval": None},
    ]
    rows = [
        {"model": "B", "per_seed": per_seed, "mean": -4.5, "interval": [-9.125, 1.0]},
        {"model": "C", "per_seed": []},
    ]
    assert difference_table(rows, "A").rows == [
        ["B", 0, "-12.00", "-20.00 … +1.25", "samples, paired bootstrap"],
        ["B", 1, "+3.00", "", ""],
        ["B", "all", "-4.50", "-9.12 … +1.00", "seeds, Student's t"],
        ["C", "", "", "", "no seed in common"],
    ]


def test_costs_are_relative_to_the_baseline():
    def cost(model: str, ms: float) -> ModelCost:
        return ModelCost(model, 1_500_000, 2 * 10**9, [ms - 1, ms, ms + 1], [ms / 20, ms / 10, ms / 5], 2**20)

    table = cost_table([cost("SA", 10.0), cost("B", 7.5)], 1)
    assert [row[3:5] for row in table.rows] == [
        ["10.00 [9.00, 11.00]", "1"],
        ["7.50 [6.50, 8.50]", "0.750 [0.375, 1.500]"],
    ]
    assert table.head[4] == "time / SA ↓"


def test_numbers_for_programs_are_complete():
    rows = score_rows([run("SA", 3, 1 / 3, fid_interval=[0.25, 0.5], num_inference_steps=7)])
    assert rows[0]["fid"] == 1 / 3 and rows[0]["fid_low"] == 0.25 and rows[0]["training_hours"] == 2.0
    head, line = csv_text(rows).splitlines()
    values = dict(zip(head.split(","), line.split(","), strict=True))
    assert float(values["fid"]) == 1 / 3 and values["num_inference_steps"] == "7" and values["seconds_per_image"] == ""
