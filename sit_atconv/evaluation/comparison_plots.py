"""Curves of a comparison: FID against training steps, training time and sampling time."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..utils.text import printable
from .evaluated_runs import Run, model_names


class Plot(NamedTuple):
    """One picture in two formats.

    Attributes:
        png: content of a PNG file.
        svg: an <svg> element to be placed in a page.
    """

    png: bytes
    svg: str


def plot_curves(runs: Sequence[Run]) -> dict[str, Plot]:
    """The curves of all runs, by the name of the plot; the runs of one model share a colour."""
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
    with matplotlib.rc_context({"svg.hashsalt": "sit-atconv", "font.size": 9}):
        for name, (label, points_of) in axes_of.items():
            figure = draw_curves(runs, [sorted(points_of(run)) for run in runs], label)
            png, svg = io.BytesIO(), io.StringIO()
            figure.savefig(png, format="png", dpi=150)
            figure.savefig(svg, format="svg", metadata={"Date": None})
            plots[name] = Plot(png.getvalue(), with_own_ids(svg.getvalue()[svg.getvalue().index("<svg") :], name))
    return plots


def draw_curves(runs: Sequence[Run], points: Sequence[list[tuple[float, float]]], label: str) -> Figure:
    """One figure with the (x, FID) points of each run as a curve."""
    models = model_names(runs)
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, Line2D] = {}  # the first one of each model
    for run, own_points in zip(runs, points, strict=True):
        if own_points:
            place = models.index(run.model)
            (curve,) = axes.plot(
                *zip(*own_points, strict=True),
                color=f"C{place}",
                marker="osD^v"[place % 5],
                markersize=3.5,
                linewidth=1.2,
            )
            curves.setdefault(run.model, curve)
    axes.set(xlabel=label)
    axes.set_ylabel(printable(f"FID ({runs[0].final['extractor']})"), parse_math=False)
    fids = [fid for own_points in points for _, fid in own_points]
    if fids and min(fids) > 0 and max(fids) > 5 * min(fids):
        axes.set_yscale("log")
    axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
    if curves:
        name_curves(axes, curves)
    return figure


def name_curves(axes: Axes, curves: Mapping[str, Line2D]) -> None:
    """Add a legend with names as they are: "$" begins no formula, and "_" at the start hides no curve."""
    legend = axes.legend(curves.values(), ["model"] * len(curves), frameon=False)
    for text, name in zip(legend.get_texts(), curves, strict=True):
        text.set_text(printable(name))
        text.set_parse_math(False)


def time_unit(runs: Sequence[Run]) -> tuple[str, int]:
    """The unit in which training times are shown, hours or minutes, and how many of them make an hour."""
    longest = max((hours for run in runs for hours in run.hours.values()), default=0)
    return ("hours", 1) if longest >= 1 else ("minutes", 60)


def with_own_ids(svg: str, name: str) -> str:
    """The SVG with `name` before each of its ids, so that several pictures can share a page."""
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
