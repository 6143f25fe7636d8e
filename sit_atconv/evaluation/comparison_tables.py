"""The tables of a comparison: scores, paired differences and costs. The numbers of a column have the same decimals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..sharing.card import CARD_METRICS
from ..utils.tables import aligned, aligned_intervals
from .comparison_plots import time_unit
from .evaluated_runs import Run
from .model_costs import ModelCost
from .report_entries import SCORES

LOWER_IS_BETTER = {"fid", "fid_infinity", "sfid", "kid"}


class Table(NamedTuple):
    """A table of the report; the cells of a row are converted by `str`."""

    head: list[str]
    rows: list[list]


def from_columns(columns: dict[str, Sequence]) -> Table:
    """A table from its columns by their names."""
    return Table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def mean_fids(runs: Sequence[Run]) -> str:
    """The FID of each model, or its mean over seeds, in one line."""
    by_model: dict[str, list[float]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run.final["fid"])
    seeds = sorted({len(values) for values in by_model.values()})
    suffix = "" if seeds == [1] else f"means of {' or '.join(map(str, seeds))} seeds, "
    means = aligned([float(np.mean(values)) for values in by_model.values()])
    return f"{', '.join(means)} ({suffix}lower is better)"


def score_table(runs: Sequence[Run]) -> Table:
    """One row per run, with every metric that all final reports have; an arrow tells which way is better."""
    finals = [run.final for run in runs]
    unit, per_hour = time_unit(runs)
    hours = [run.hours.get(run.final["step"]) for run in runs]
    seconds = [report.get("seconds_per_image") for report in finals]
    columns: dict[str, Sequence] = {
        "model": [run.model for run in runs],
        "seed": [run.seed for run in runs],
        "steps": [report["step"] for report in finals],
        unit: aligned([None if each is None else each * per_hour for each in hours], digits=3),
    }
    for name in SCORES:
        if all(name in report for report in finals):
            head = f"{CARD_METRICS[name]} {'↓' if name in LOWER_IS_BETTER else '↑'}"
            intervals = [report.get(f"{name}_interval") for report in finals]
            columns[head] = aligned_intervals([report[name] for report in finals], intervals)
    columns["calls/image"] = aligned([report.get("network_calls_per_image") for report in finals])
    columns["ms/image"] = aligned([None if each is None else each * 1e3 for each in seconds])
    return from_columns(columns)


def difference_table(differences: Sequence[dict], baseline: str) -> Table:
    """FID minus the baseline's, by seed and over seeds, from `paired_differences`."""
    rows: list[tuple] = []  # model, seed, difference, interval, what the interval covers
    for row in differences:
        for entry in row["per_seed"]:
            source = "" if entry["interval"] is None else "samples, paired bootstrap"
            rows.append((row["model"], entry["seed"], entry["difference"], entry["interval"], source))
        if row.get("interval"):
            rows.append((row["model"], "all", row["mean"], row["interval"], "seeds, Student's t"))
        if not row["per_seed"]:
            rows.append((row["model"], "", None, None, "no seed in common"))
    ends = aligned([end for *_, interval, _ in rows for end in interval or (None, None)], signed=True)
    intervals = [f"{low} … {high}" if low else "" for low, high in zip(ends[::2], ends[1::2], strict=True)]
    models, seeds, values, _, sources = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [], [])
    return from_columns(
        {
            "model": models,
            "seed": seeds,
            f"FID − FID of {baseline} ↓": aligned(values, signed=True),
            "95 % interval": intervals,
            "of": sources,
        }
    )


def cost_table(costs: Sequence[ModelCost], batch_size: int) -> Table:
    """Parameters, GMACs, latency and memory, one row per model; the first is the baseline."""
    return from_columns(
        {
            "model": [cost.model for cost in costs],
            "parameters, M": aligned([cost.parameters / 1e6 for cost in costs]),
            "GMACs": aligned([cost.macs / 1e9 for cost in costs]),
            f"forward, ms, batch {batch_size}": quartile_cells([cost.ms for cost in costs]),
            f"time / {costs[0].model} ↓": ["1", *quartile_cells([cost.ratio for cost in costs[1:]])],
            "peak, MiB": aligned([cost.peak_bytes / 2**20 for cost in costs], digits=3),
        }
    )


def quartile_cells(quartiles: Sequence[Sequence[float]]) -> list[str]:
    """Medians with the other two quartiles in brackets, from three numbers each."""
    return aligned_intervals([middle for _, middle, _ in quartiles], [(low, high) for low, _, high in quartiles])
