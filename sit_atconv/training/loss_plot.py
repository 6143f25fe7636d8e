"""loss.png: the curves of metrics.jsonl."""

from pathlib import Path

from ..utils.files import staged
from .runlog import read_metrics
from .step_report import TIME_BINS


def plot_metrics(file: Path, picture: Path) -> None:
    """Draw the loss, the loss by time and the gradient norm in metrics.jsonl over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(file) if line.get("loss") is not None]
    if not lines:
        return
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(14, 4))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.12, wspace=0.15)
    loss, by_time, norm = figure.subplots(1, 3)
    loss.plot(steps, [line["loss"] for line in lines])
    loss.set(title="loss", xlabel="step")
    for i in range(TIME_BINS):
        values = [float("nan") if line["loss_by_time"][i] is None else line["loss_by_time"][i] for line in lines]
        shade = i / (TIME_BINS - 1)
        by_time.plot(steps, values, color=(shade, 0.4, 1 - shade), label=f"t = {(i + 0.5) / TIME_BINS:.2f}")
    by_time.set(title="loss by time (t=0 noise, t=1 data)", xlabel="step")
    by_time.legend(fontsize="x-small", ncols=2)
    norm.plot(steps, [line["grad_norm"] for line in lines])
    norm.set(title="gradient norm before clipping", xlabel="step")
    with staged(picture, durable=False) as staging:
        FigureCanvasAgg(figure).print_png(staging)
