"""Curves of a comparison: FID against training steps, training time and sampling time.

Models differ in colour and line, seeds in their markers. In a page, text and axes take the colour of the page's text.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..utils.text import printable
from .evaluated_runs import Run, model_names

INK = "#010203"  # of text and axes in a figure; a page replaces it by the colour of its own text
COLOURS = ("#2f7fc1", "#e07b1a", "#3a9a4b", "#c4475f", "#8566bf")  # readable on white and on black
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX<>"
STYLE: Any = {
    "svg.hashsalt": "sit-atconv",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


class Plot(NamedTuple):
    """One picture in two formats.

    Attributes:
        png: content of a PNG file.
        svg: an <svg> element to be placed in a page.
        alt: what it shows, in words.
    """

    png: bytes
    svg: str
    alt: str = ""


def plot_curves(runs: Sequence[Run]) -> dict[str, Plot]:
    """The curves of all runs, by the name of the plot."""
    unit, per_hour = time_unit(runs)
    axes_of: dict[str, tuple[str, Callable[[Run], list[tuple[float, float]]]]] = {
        "fid-steps": ("training steps", lambda run: [(r["step"], r["fid"]) for r in run.reports_by_step]),
        "fid-training-time": (
            f"training time, {unit}",
            lambda run: [
                (run.hours[r["step"]] * per_hour, r["fid"]) for r in run.reports_by_step if r["step"] in run.hours
            ],
        ),
        "fid-sampling-time": (
            "sampling time, ms per image",
            lambda run: [
                (r["seconds_per_image"] * 1e3, r["fid"]) for r in run.reports_of_last_step if "seconds_per_image" in r
            ],
        ),
    }
    plots = {}
    with matplotlib.rc_context(STYLE):
        for name, (label, points_of) in axes_of.items():
            points = [sorted(points_of(run)) for run in runs]
            plots[name] = plot_of(draw_curves(runs, points, label), name, describe_curves(runs, points, label))
    return plots


def plot_of(figure: Figure, name: str, alt: str) -> Plot:
    """Draw a figure in both formats, under `STYLE`.

    Args:
        figure: the figure.
        name: begins the ids in the SVG; no other plot of a page has it.
        alt: what it shows, in words.
    """
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=150, facecolor="white")
    figure.savefig(svg, format="svg", metadata={"Date": None})
    alt = printable(alt)
    return Plot(png.getvalue(), for_a_page(svg.getvalue(), name, alt), alt)


def describe_curves(runs: Sequence[Run], points: Sequence[list[tuple[float, float]]], label: str) -> str:
    """What a plot shows, for those who do not see it: the ends of each curve."""
    curves = [
        f"{run.model}, seed {run.seed}: {own[0][1]:.3g} at {own[0][0]:.3g}"
        + (f" to {own[-1][1]:.3g} at {own[-1][0]:.3g}" if len(own) > 1 else "")
        for run, own in zip(runs, points, strict=True)
        if own
    ]
    return printable(f"FID against {label}, lower is better. {'; '.join(curves)}.")


def draw_curves(runs: Sequence[Run], points: Sequence[list[tuple[float, float]]], label: str) -> Figure:
    """One figure with the (x, FID) points of each run as a curve."""
    models, seeds = model_names(runs), sorted({run.seed for run in runs})
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, Line2D] = {}  # the first one of each model
    for run, own_points in zip(runs, points, strict=True):
        if own_points:
            place = models.index(run.model)
            (curve,) = axes.plot(
                *zip(*own_points, strict=True),
                color=COLOURS[place % len(COLOURS)],
                linestyle=LINES[place % len(LINES)],
                marker=MARKERS[seeds.index(run.seed) % len(MARKERS)],
                markersize=4,
                linewidth=1.2,
            )
            curves.setdefault(run.model, curve)
    axes.set(xlabel=label)
    axes.set_ylabel(printable(f"FID ({runs[0].final['extractor']}), lower is better"), parse_math=False)
    fids = [fid for own_points in points for _, fid in own_points]
    if fids and min(fids) > 0 and max(fids) > 5 * min(fids):
        axes.set_yscale("log")
    axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
    if curves:
        name_curves(axes, curves, seeds)
    return figure


def name_curves(axes: Axes, curves: Mapping[str, Line2D], seeds: Sequence[int]) -> None:
    """Add a legend of models and, if there are several, of seeds.

    Names are shown as they are: "$" begins no formula, and "_" at the start hides no curve.
    """
    lines = [Line2D([], [], color=curve.get_color(), linestyle=curve.get_linestyle()) for curve in curves.values()]
    names = list(curves)
    if len(seeds) > 1:
        lines += [
            Line2D([], [], color=INK, linestyle="", marker=MARKERS[i % len(MARKERS)], markersize=4)
            for i in range(len(seeds))
        ]
        names += [f"seed {seed}" for seed in seeds]
    legend = axes.legend(lines, ["name"] * len(lines), frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(printable(name))
        text.set_parse_math(False)


def time_unit(runs: Sequence[Run]) -> tuple[str, int]:
    """The unit in which training times are shown, hours or minutes, and how many of them make an hour."""
    longest = max((hours for run in runs for hours in run.hours.values()), default=0)
    return ("hours", 1) if longest >= 1 else ("minutes", 60)


def with_own_ids(svg: str, name: str) -> str:
    """The SVG with `name` before each of its ids, so that several pictures can share a page."""
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)


def for_a_page(svg: str, name: str, alt: str) -> str:
    """The <svg> element of a file for a page: with ids of its own, the page's colour of text, and words for readers."""
    element = with_own_ids(svg[svg.index("<svg") :], name).replace(INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
