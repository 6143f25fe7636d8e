"""What a comparison shows of validation losses: one table by time and by spatial frequency, and the same as curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..utils.text import printable
from .comparison_plots import COLOURS, INK, LINES, STYLE, Plot, name_curves, plot_of
from .comparison_tables import Table, from_columns
from .evaluated_runs import Run, model_names
from .validation_loss import BANDS, TIME_BINS, ValidationLoss

TIMES = tuple(f"{i / TIME_BINS:.1f}–{(i + 1) / TIME_BINS:.1f}" for i in range(TIME_BINS))
PARTS = ("all", *(f"t {name}" for name in TIMES), *(f"{name} cycles/pixel" for name in BANDS))
# How to read the table and the curves.
READING = (
    "Validation loss: squared error of the velocity on the same held-out images, noise and times for all models; t=0 "
    "noise, t=1 data. The other columns are differences of pairs, below 0 in favour of their model, with the standard "
    "error over seeds, or over samples where there is one seed."
)

Losses = Mapping[tuple[str, int], ValidationLoss]  # by model and seed


@dataclass(frozen=True)
class LossDifference:
    """The loss of a model minus the baseline's, for each of `PARTS`; of the baseline itself, its loss.

    Attributes:
        model: name of the model.
        mean: mean over seeds.
        error: its standard error.
        seeds: number of seeds.
    """

    model: str
    mean: np.ndarray
    error: np.ndarray
    seeds: int


def loss_differences(losses: Losses) -> list[LossDifference]:
    """The loss of the first model, and the paired differences of the others, seed by seed.

    Raises:
        ValueError: if models have no seed in common, or were not measured on the same samples.
    """
    models = list(dict.fromkeys(model for model, _ in losses))
    baseline = models[0]
    rows = []
    for model in models:
        seeds = [seed for name, seed in losses if name == model and (baseline, seed) in losses]
        if not seeds:
            raise ValueError(f"{model} and {baseline} have no seed in common; validate them with the same seeds")
        parts = [by_part(losses[model, seed], losses[baseline, seed], model != baseline) for seed in seeds]
        means, errors = (np.array(values) for values in zip(*parts, strict=True))  # (seeds, parts)
        error = errors[0] if len(seeds) == 1 else means.std(axis=0, ddof=1) / np.sqrt(len(seeds))
        rows.append(LossDifference(model, means.mean(axis=0), error, len(seeds)))
    return rows


def losses_of_runs(runs: Sequence[Run]) -> dict[int, list[LossDifference]]:
    """`loss_differences` after each training step at which all runs were validated; empty if there is none.

    Empty, too, if a model has no seed in common with the first one.
    """
    steps = sorted(set.intersection(*(set(run.validation) for run in runs)))
    seeds = {run.seed for run in runs if run.model == runs[0].model}
    if not all(any(run.model == model and run.seed in seeds for run in runs) for model in model_names(runs)):
        return {}
    return {step: loss_differences({(run.model, run.seed): run.validation[step] for run in runs}) for step in steps}


def by_part(loss: ValidationLoss, baseline: ValidationLoss, subtract: bool) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard error (parts,) in each of `PARTS` of a loss, or of its difference to the baseline's.

    Not a number for a band of frequencies that images of this size do not have.
    """
    if loss.settings != baseline.settings:
        raise ValueError(
            f"validation losses of different samples cannot be compared ({loss.settings} and {baseline.settings}); "
            "compute all of them with the same options"
        )
    values, spectrum = loss.loss, np.where(baseline.spectrum.any(axis=0), loss.spectrum, np.nan)
    if subtract:
        values, spectrum = values - baseline.loss, spectrum - baseline.spectrum
    columns = [values, *(values[loss.bins == i] for i in range(TIME_BINS)), *spectrum.T]
    means, errors = zip(*map(mean_and_error, columns), strict=True)
    return np.array(means), np.array(errors)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of values (n,) and its standard error; not a number for fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def loss_table(differences: Sequence[LossDifference]) -> Table:
    """One row for each of `PARTS` that was measured: the baseline's loss, and the differences of the others."""
    baseline, *others = differences
    measured = [i for i in range(len(PARTS)) if np.isfinite(baseline.mean[i])]
    columns: dict[str, Sequence] = {
        "part": [PARTS[i] for i in measured],
        baseline.model: [f"{baseline.mean[i]:.4f}" for i in measured],
    }
    for each in others:
        columns[f"{each.model} − {baseline.model} ↓"] = [f"{each.mean[i]:+.4f} ± {each.error[i]:.4f}" for i in measured]
    return from_columns(columns)


def loss_tables(by_step: Mapping[int, Sequence[LossDifference]]) -> dict[str, Table]:
    """The tables of a comparison by their headings; by training step only where there are several."""
    if not by_step:
        return {}
    tables = {"Validation loss": loss_table(by_step[max(by_step)])}
    if len(by_step) > 1:
        tables["Validation loss by training step"] = step_table(by_step)
    return tables


def loss_record(differences: Sequence[LossDifference]) -> dict:
    """The baseline and, for each model, mean and standard error in each part; null where nothing was measured."""
    columns = {
        each.model: {
            part: None if mean != mean else {"mean": float(mean), "standard_error": float(error)}
            for part, mean, error in zip(PARTS, each.mean, each.error, strict=True)
        }
        | {"seeds": each.seeds}
        for each in differences
    }
    return {"baseline": differences[0].model, "loss_or_difference": columns}


def step_table(by_step: Mapping[int, Sequence[LossDifference]]) -> Table:
    """The mean over all samples after each number of training steps."""
    baseline, *others = next(iter(by_step.values()))
    columns: dict[str, Sequence] = {
        "steps": list(by_step),
        baseline.model: [f"{first.mean[0]:.4f}" for first, *_ in by_step.values()],
    }
    for place, each in enumerate(others, 1):
        columns[f"{each.model} − {baseline.model} ↓"] = [
            f"{rows[place].mean[0]:+.4f} ± {rows[place].error[0]:.4f}" for rows in by_step.values()
        ]
    return from_columns(columns)


def loss_plot(differences: Sequence[LossDifference]) -> Plot:
    """The differences to the baseline by time, with their standard errors."""
    baseline, *others = differences
    centres = (np.arange(TIME_BINS) + 0.5) / TIME_BINS
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.subplots()
        curves: dict[str, Line2D] = {}
        for place, each in enumerate(others, 1):  # the baseline has the first colour in the other plots
            style: Any = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % len(LINES)]}
            by_time = slice(1, 1 + TIME_BINS)
            bars = axes.errorbar(centres, each.mean[by_time], each.error[by_time], linewidth=1.2, capsize=2, **style)
            assert isinstance(bars.lines[0], Line2D)
            curves[each.model] = bars.lines[0]
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel="t (0 noise, 1 data)")
        axes.set_ylabel(printable(f"validation loss − that of {baseline.model}"), parse_math=False)
        axes.grid(True, linewidth=0.3, alpha=0.6)
        name_curves(axes, curves, [0])
        ends = "; ".join(
            f"{each.model}: {each.mean[1]:+.4f} near the noise to {each.mean[TIME_BINS]:+.4f} near the data"
            for each in others
        )
        return plot_of(figure, "loss-time", f"Validation loss minus that of {baseline.model} against t. {ends}.")
