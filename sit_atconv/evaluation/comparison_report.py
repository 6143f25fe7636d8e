"""The report of a comparison: report.md with its pictures, and report.html, one page that needs no other file."""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
import torch

from ..utils.files import write_atomically, write_json
from ..utils.image_grid import save_grid
from ..utils.tables import markdown_table
from ..utils.text import code_block, markdown_text, printable
from .comparison_data import csv_text
from .comparison_plots import Plot
from .comparison_tables import Table
from .output_files import REPORT_MARKDOWN, REPORT_PAGE

SAMPLES_HEADING = "Samples from the same noise and labels"
ORIGIN_HEADING = "Machines and versions"
RECORD_JSON, SCORES_CSV = "report.json", "scores.csv"
NUMBERS = f"All numbers, in full precision: {RECORD_JSON} and {SCORES_CSV}, beside this report."


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        title: heading of the report.
        verdict: sentences below it: who is ahead, and at what cost.
        facts: paragraphs below those: how to read the numbers.
        tables: tables by heading.
        plots: plots by the name of their file.
        grids: first samples of each model, (B, C, H, W) in [0, 1].
        columns: images per row of a grid.
        classes: names of the classes of a grid's images; empty if there are none to name.
        origin: paragraphs at the end: machines, commits and versions.
        record: all numbers, for report.json; its "scores" are also the rows of scores.csv.
        command: the command line that the report quotes; empty if there is none.
    """

    title: str
    facts: list[str]
    tables: dict[str, Table]
    verdict: list[str] = field(default_factory=list)
    plots: dict[str, Plot] = field(default_factory=dict)
    grids: dict[str, torch.Tensor] = field(default_factory=dict)
    columns: int = 8
    classes: list[str] = field(default_factory=list)
    origin: list[str] = field(default_factory=list)
    record: dict = field(default_factory=dict)
    command: str = ""

    @property
    def column_names(self) -> list[str]:
        """The class of each column of a grid; empty if the images of a column are of several classes."""
        first = self.classes[: self.columns]
        rows = [self.classes[i : i + self.columns] for i in range(0, len(self.classes), self.columns)]
        return first if len(first) == self.columns and all(row == first[: len(row)] for row in rows) else []

    @property
    def caption(self) -> str:
        """The classes of a grid's images in words; empty if there are none to name."""
        if self.column_names:
            return f"Columns from left to right: {', '.join(self.column_names)}."
        return f"Row by row: {', '.join(self.classes)}." if self.classes else ""


def write_report_files(comparison: Comparison, output: Path) -> Path:
    """Write report.md, its pictures, its numbers and report.html to a folder; returns the file report.html.

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
    if comparison.record:
        write_json(output / RECORD_JSON, comparison.record)
        write_atomically(output / SCORES_CSV, csv_text(comparison.record["scores"]))
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
    parts = [f"# {markdown_text(comparison.title)}"]
    parts += [f"**{markdown_text(line)}**" for line in comparison.verdict]
    parts += map(markdown_text, comparison.facts)
    for heading, table in comparison.tables.items():
        head, *rows = [[markdown_text(cell) for cell in row] for row in (table.head, *table.rows)]
        parts += [f"## {heading}", markdown_table(head, rows)]
    parts += ["## Curves", *(picture_link(plot.alt or name, f"{name}.png") for name, plot in comparison.plots.items())]
    parts += [f"## {SAMPLES_HEADING}", *([markdown_text(comparison.caption)] if comparison.caption else [])]
    parts += [f"{markdown_text(name)}:\n\n{picture_link(name, file.name)}" for name, file in pictures.items()]
    parts += [f"## {ORIGIN_HEADING}", *map(markdown_text, comparison.origin)] if comparison.origin else []
    parts += [NUMBERS] if comparison.record else []
    if comparison.command:
        parts += ["## Command", code_block(comparison.command, "bash")]
    return "\n\n".join(parts) + "\n"


def picture_link(alternative: str, file: str) -> str:
    """A picture in Markdown, with words for those who do not see it."""
    words = re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", markdown_text(alternative))
    return f"![{words}]({file})"


def render_html(comparison: Comparison, pictures: dict[str, Path]) -> str:
    """The report as one HTML page with its pictures inside; arguments as those of `render_markdown`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((files(__package__) / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        comparison=comparison,
        samples_heading=SAMPLES_HEADING,
        origin_heading=ORIGIN_HEADING,
        numbers=NUMBERS,
        grids={name: base64.b64encode(file.read_bytes()).decode() for name, file in pictures.items()},
    )
    return printable(page)
