"""Validation losses of pipeline folders, and of the runs of a comparison."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import open_dataset
from ..utils.environment import describe_environment, pick_device
from ..utils.files import write_atomically
from ..utils.tables import markdown_table
from ..utils.text import markdown_text
from .comparison_plots import Plot
from .records import describe_pipeline
from .sampling import image_shape, load_pipeline
from .validation_loss import ValidationLoss, validation_loss
from .validation_options import ValidationOptions
from .validation_tables import READING, loss_differences, loss_plot, loss_record, loss_table


@dataclass(frozen=True)
class ValidationReport:
    """Validation losses of several models.

    Attributes:
        text: the table in Markdown, and how to read it.
        plot: the differences by time; None for a single model.
        record: all numbers, and what they depend on.
    """

    text: str
    plot: Plot | None
    record: dict


def validate_folders(
    named: Sequence[tuple[str, str]], options: ValidationOptions, device: str = "auto"
) -> ValidationReport:
    """Compute the validation loss of pipeline folders, and compare them with the first one.

    Args:
        named: (name, pipeline folder) of each model, the baseline's first. Names that differ in an ending -seedN alone
            are trainings of one model.
        options: the held-out images, numbers and seed.
        device: such as "cpu" or "cuda".

    Raises:
        ValueError: if a name is given twice, a folder cannot be loaded, or the data does not fit.
    """
    keys = [split_seed(name) for name, _ in named]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"{sorted(twice)[0][0]!r} is named twice; give each pipeline a name of its own")
    losses: dict[tuple[str, int], ValidationLoss] = {}
    facts = {}
    for key, (name, folder) in zip(keys, named, strict=True):
        pipeline = load_pipeline(folder, pick_device(device))
        losses[key] = validation_loss(pipeline, open_dataset(options.data, image_shape(pipeline)[0]), options)
        facts[name] = {"pipeline": folder, **describe_pipeline(pipeline)}
    differences = loss_differences(losses)
    table = loss_table(differences)
    record = {
        "data": options.data,
        "samples": json.loads(losses[keys[0]].settings),
        **loss_record(differences),
        "models": facts,
        "environment": describe_environment(pick_device(device)),
    }
    text = markdown_table([markdown_text(cell) for cell in table.head], table.rows)
    return ValidationReport(f"{text}\n\n{READING}", loss_plot(differences) if len(differences) > 1 else None, record)


def split_seed(name: str) -> tuple[str, int]:
    """The model and the seed in a name: "SA-seed1" is ("SA", 1), "SA" is ("SA", 0)."""
    match = re.fullmatch(r"(.+)-seed(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def write_plot(file: str | None, report: ValidationReport) -> None:
    """Write the plot of a report to a PNG file; None writes nothing."""
    if file is not None and report.plot is not None:
        write_atomically(Path(file), report.plot.png)
