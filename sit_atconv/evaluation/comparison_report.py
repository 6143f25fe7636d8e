"""The report of a comparison: report.md with its pictures, and report.html, one page that needs no other file."""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import torch

from ..sharing.card import CARD_METRICS
from ..utils.files import write_atomically
from ..utils.image_grid import save_grid
from ..utils.tables import markdown_table
from ..utils.text import code_block, markdown_text, printable
from .comparison_plots import Plot, time_unit
from .evaluated_runs import Run
from .model_costs import ModelCost
from .output_files import REPORT_MARKDOWN, REPORT_PAGE

SCORES = ("fid", "fid_infinity", "sfid", "kid", "inception_score", "precision", "recall", "density", "coverage")
SAMPLES_HEADING = "Samples from the same noise and labels"


class Table(NamedTuple):
    """A table of the report; the cells of a row are converted by `str`."""

    head: list[str]
    rows: list[list]


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        title: heading of the report.
        facts: paragraphs below it: how the numbers were made.
        tables: tables by heading.
        plots: plots by the name of their file.
        grids: first samples of each model, (B, C, H, W) in [0, 1].
        columns: images per row of a grid.
        command: the command line that the report quotes; empty if there is none.
    """

    title: str
    facts: list[str]
    tables: dict[str, Table]
    plots: dict[str, Plot] = field(default_factory=dict)
    grids: dict[str, torch.Tensor] = field(default_factory=dict)
    columns: int = 8
    command: str = ""


def write_report_files(comparison: Comparison, output: Path) -> Path:
    """Write report.md, its pictures and report.html to a folder; returns the file report.html.

    report.md comes first: a folder that holds it is known as one of a report, and an interrupted one can be written
    again.
    """
    output.mkdir(parents=True, exist_ok=True)
    pictures = picture_files(comparison.grids, output)
    write_atomically(output / REPORT_MARKDOWN, render_markdown(comparison, pictures))
    for name, plot in comparison.plots.items():
        write_atomically(output / f"{name}.png", plot.png)
    for name, grid in comparison.grids.items():
        save_grid(grid, pictures[name], comparison.columns)
    page = output / REPORT_PAGE
    write_atomically(page, render_html(comparison, pictures))
    return page


def picture_files(names: Iterable[str], output: Path) -> dict[str, Path]:
    """The file with the samples of each model, in plain characters; no two models share a file."""
    pictures: dict[str, Path] = {}
    for name in names:
        stem = f"samples-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
        taken = {file.name.lower() for file in pictures.values()}  # some file systems do not tell A from a
        stems = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 2)))
        pictures[name] = output / next(f"{each}.png" for each in stems if f"{each}.png".lower() not in taken)
    return pictures


def render_markdown(comparison: Comparison, pictures: dict[str, Path]) -> str:
    """The report in Markdown. Names and other text are shown as they are, never read as HTML or Markdown.

    Args:
        comparison: what it shows.
        pictures: the file with the grid of samples of each model, beside the report.
    """
    parts = [f"# {markdown_text(comparison.title)}", *map(markdown_text, comparison.facts)]
    for heading, table in comparison.tables.items():
        head, *rows = [[markdown_text(cell) for cell in row] for row in (table.head, *table.rows)]
        parts += [f"## {heading}", markdown_table(head, rows)]
    parts += ["## Curves", *(f"![{name}]({name}.png)" for name in comparison.plots), f"## {SAMPLES_HEADING}"]
    for name, file in pictures.items():
        text = markdown_text(name)
        alternative = re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", text)
        parts.append(f"{text}:\n\n![{alternative}]({file.name})")
    if comparison.command:
        parts += ["## Command", code_block(comparison.command, "bash")]
    return "\n\n".join(parts) + "\n"


def render_html(comparison: Comparison, pictures: dict[str, Path]) -> str:
    """The report as one HTML page with its pictures inside; arguments as those of `render_markdown`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((files(__package__) / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=comparison.title,
        facts=comparison.facts,
        tables=comparison.tables,
        plots=comparison.plots,
        samples_heading=SAMPLES_HEADING,
        grids={name: base64.b64encode(file.read_bytes()).decode() for name, file in pictures.items()},
        command=comparison.command,
    )
    return printable(page)


def mean_fids(runs: Sequence[Run]) -> str:
    """The FID of each model, or its mean over seeds, in one line."""
    by_model: dict[str, list[float]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run.final["fid"])
    seeds = sorted({len(values) for values in by_model.values()})
    suffix = "" if seeds == [1] else f" (means of {' or '.join(map(str, seeds))} seeds)"
    return ", ".join(f"{np.mean(values):.4g}" for values in by_model.values()) + suffix


def score_table(runs: Sequence[Run]) -> Table:
    """One row per run, with every metric that all final reports have."""
    columns = [name for name in SCORES if all(name in run.final for run in runs)]
    unit, per_hour = time_unit(runs)
    rows: list[list] = []
    for run in runs:
        report = run.final
        hours, calls = run.hours.get(report["step"]), report.get("network_calls_per_image")
        seconds = report.get("seconds_per_image")
        rows.append(
            [
                run.model,
                run.seed,
                report["step"],
                "" if hours is None else f"{hours * per_hour:.3g}",
                *(with_interval(report[name], report.get(f"{name}_interval")) for name in columns),
                "" if calls is None else f"{calls:.4g}",
                "" if seconds is None else f"{seconds * 1e3:.4g}",
            ]
        )
    names = [CARD_METRICS[name] for name in columns]
    return Table(["model", "seed", "steps", unit, *names, "calls/image", "ms/image"], rows)


def with_interval(value: float, interval: list[float] | None) -> str:
    """A number, with its interval in brackets if it has one."""
    return f"{value:.4g}" if interval is None else f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"


def difference_table(differences: list[dict], baseline: str) -> Table:
    """FID minus the baseline's, by seed and over seeds, from `paired_differences`."""
    rows: list[list] = []
    for row in differences:
        for entry in row["per_seed"]:
            words, source = "", ""
            if entry["interval"] is not None:
                words, source = "{:+.4g} … {:+.4g}".format(*entry["interval"]), "samples, paired bootstrap"
            rows.append([row["model"], entry["seed"], f"{entry['difference']:+.4g}", words, source])
        if row.get("interval"):
            words = "{:+.4g} … {:+.4g}".format(*row["interval"])
            rows.append([row["model"], "all", f"{row['mean']:+.4g}", words, "seeds, Student's t"])
        if not row["per_seed"]:
            rows.append([row["model"], "", "no seed in common", "", ""])
    return Table(["model", "seed", f"FID − FID of {baseline}", "95 % interval", "of"], rows)


def cost_table(costs: Sequence[ModelCost], batch_size: int) -> Table:
    """Parameters, GMACs, latency and memory, one row per model; the first is the baseline."""
    rows: list[list] = [
        [
            cost.model,
            f"{cost.parameters / 1e6:.3f}",
            f"{cost.macs / 1e9:.4g}",
            "{1:.4g} [{0:.4g}–{2:.4g}]".format(*cost.ms),
            "{1:.3f} [{0:.3f}–{2:.3f}]".format(*cost.ratio),
            f"{cost.peak_bytes / 2**20:.3g}",
        ]
        for cost in costs
    ]
    head = ["model", "parameters, M", "GMACs", f"forward, ms, batch {batch_size}", f"time / {costs[0].model}"]
    return Table([*head, "peak, MiB"], rows)
