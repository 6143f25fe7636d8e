"""Curves of runs with any name."""

import warnings
from pathlib import Path

import pytest

from sit_atconv.evaluation.comparison_plots import draw_curves, plot_curves
from sit_atconv.evaluation.evaluated_runs import Run


def run(model: str, fid: float) -> Run:
    report = {"step": 1, "fid": fid, "extractor": "torchscript:a$x^{$.pt", "seconds_per_image": 0.1}
    return Run(Path(model), model, 0, {}, [report], hours={1: 0.5})


@pytest.mark.parametrize("name", ["a$x^{$", "_hidden", "$$", "a\\$b", "\x1b[2J", r"\frac{", "100 %"])
def test_names_are_shown_as_they_are(name):
    runs = [run("SA", 1.0), run(name, 20.0)]  # far enough apart for a logarithmic axis, whose labels are formulas
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = plot_curves(runs)
    assert all(plot.png.startswith(b"\x89PNG") and plot.svg.startswith("<svg") for plot in plots.values())
    (axes,) = draw_curves(runs, [[(1, 1.0)], [(1, 20.0)]], "steps").axes
    shown = name.replace("\x1b", r"\x1b")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SA", shown]
    assert axes.get_ylabel() == "FID (torchscript:a$x^{$.pt)"
