"""loss.png: the curves of metrics.jsonl."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.files import staged
from .runlog import read_metrics
from .step_report import TIME_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 20  # fewer are marked: a line through a single one would not be seen


def plot_metrics(file: Path, picture: Path) -> None:
    """Draw the loss, the loss by time (if there are times) and the gradient norm in metrics.jsonl over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(file) if line.get("loss") is not None]
    if not lines:
        return
    steps = [line["step"] for line in lines]
    marker = "." if len(steps) < FEW_POINTS else ""
    has_times = lines[0]["loss_by_time"] is not None
    panels = 3 if has_times else 2
    figure = Figure(figsize=(14 * panels / 3, 4))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.12, wspace=0.15)
    loss, *middle, norm = figure.subplots(1, panels)
    loss.plot(steps, [line["loss"] for line in lines], marker=marker)
    loss.set(title="loss", xlabel="step")
    for by_time in middle:
        _plot_by_time(by_time, steps, [line["loss_by_time"] for line in lines], marker)
    norm.plot(steps, [line["grad_norm"] for line in lines], marker=marker)
    norm.set(title="gradient norm before clipping", xlabel="step")
    with staged(picture, durable=False) as staging:
        FigureCanvasAgg(figure).print_png(staging)


def _plot_by_time(axes: "Axes", steps: list[int], losses: list[list[float | None]], marker: str) -> None:
    for i in range(TIME_BINS):
        values = [float("nan") if (loss := line[i]) is None else loss for line in losses]
        shade = i / (TIME_BINS - 1)
        label = f"t = {(i + 0.5) / TIME_BINS:.2f}"
        axes.plot(steps, values, color=(shade, 0.4, 1 - shade), label=label, marker=marker)
    axes.set(title="loss by time (t=0 noise, t=1 data)", xlabel="step")
    axes.legend(fontsize="x-small", ncols=2)
