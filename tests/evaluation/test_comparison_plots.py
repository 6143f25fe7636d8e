"""Curves of runs with any name."""

import warnings
from pathlib import Path

import pytest

from sit_atconv.evaluation.comparison_plots import INK, draw_curves, plot_curves
from sit_atconv.evaluation.evaluated_runs import Run


def run(model: str, fid: float, seed: int = 0) -> Run:
    report = {"step": 1, "fid": fid, "extractor": "torchscript:a$x^{$.pt", "seconds_per_image": 0.1}
    return Run(Path(model), model, seed, {}, [report], hours={1: 0.5})


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
    assert axes.get_ylabel() == "FID (torchscript:a$x^{$.pt), lower is better"


def test_models_differ_in_line_and_seeds_in_marker():
    runs = [run(model, 2.0, seed) for model in ("SA", "ATConv") for seed in (3, 8)]
    (axes,) = draw_curves(runs, [[(1, 2.0), (2, 1.0)]] * 4, "steps").axes
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines]
    assert looks[0][:2] == looks[1][:2] != looks[2][:2] == looks[3][:2]
    assert looks[0][2] == looks[2][2] != looks[1][2] == looks[3][2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SA", "ATConv", "seed 3", "seed 8"]


def test_plots_follow_the_page_and_say_what_they_show():
    plot = plot_curves([run("SA", 1.0), run('<"b">', 20.0)])["fid-training-time"]
    assert "currentColor" in plot.svg and INK not in plot.svg and "#ffffff" not in plot.svg
    assert (
        plot.alt == 'FID against training time, minutes, lower is better. SA, seed 0: 1 at 30; <"b">, seed 0: 20 at 30.'
    )
    assert 'role="img" aria-label="FID against training time' in plot.svg and '<"b">' not in plot.svg
