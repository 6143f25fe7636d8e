"""The numbers of a comparison for other programs: report.json with all of them, scores.csv with a row a report."""

import csv
import dataclasses
import io
from collections.abc import Sequence

from .evaluated_runs import Run
from .model_costs import ModelCost
from .report_entries import SCORES

# What a row says besides the metrics.
FACTS = (
    "model",
    "seed",
    "step",
    "num_inference_steps",
    "network_calls_per_image",
    "seconds_per_image",
    "training_hours",
    "num_samples",
)


def score_rows(runs: Sequence[Run]) -> list[dict]:
    """One dictionary for each report of each run: its metrics in full precision, with the ends of their intervals."""
    rows = []
    for run in runs:
        for report in run.reports:
            facts = {**report, "model": run.model, "seed": run.seed, "training_hours": run.hours.get(report["step"])}
            row = {name: facts.get(name) for name in FACTS}
            for name in SCORES:
                if name in report:
                    row[name] = report[name]
                    row |= {f"{name}_{end}": value for end, value in ends(report.get(f"{name}_interval")).items()}
            rows.append(row)
    return rows


def ends(interval: Sequence[float] | None) -> dict[str, float]:
    """The ends of an interval by name; nothing if there is none."""
    return {} if interval is None else dict(zip(("low", "high"), interval, strict=True))


def comparison_record(
    runs: Sequence[Run], differences: Sequence[dict], costs: Sequence[ModelCost], environment: dict
) -> dict:
    """Everything that a comparison measured, for report.json."""
    return {
        "baseline": runs[0].model,
        "scores": score_rows(runs),
        "differences": list(differences),
        "costs": [dataclasses.asdict(cost) for cost in costs],
        "environment": environment,
    }


def csv_text(rows: Sequence[dict]) -> str:
    """Rows as CSV. A column that a row lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
