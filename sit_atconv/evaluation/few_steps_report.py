"""The report of quality against network calls: a table, curves, and pictures from the same noise.

B images of H × W pixels and C channels; images are uint8 (B, H, W, C).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..pipelines.pipeline_sit import SiTPipeline
from ..pipelines.schedulers import with_scheduler
from ..utils.environment import pick_device
from ..utils.files import staged, write_atomically
from .few_steps import by_label, few_step_samplers, measure_few_steps, quality_table
from .sampling import generate, load_pipeline
from .sampling_options import SamplingOptions, balanced_labels

PICTURE_CALLS = (1, 2, 4, 8, 50)
PICTURES_PER_ROW = 10
TICKS = (1, 2, 4, 8, 16, 50)  # network calls


def write_few_steps(
    pipelines: Sequence[tuple[str, str]], output: str, device: str = "auto", seed: int = 0, **options
) -> str:
    """Measure, and write the table and the figures beside the results; arguments as for `measure_few_steps`.

    Returns:
        The table.
    """
    rows = measure_few_steps(pipelines, output=output, device=device, seed=seed, **options)
    table = quality_table(rows)
    write_atomically(Path(output) / "few-steps.md", table + "\n")
    save_figure(quality_figure(rows), Path(output) / "few-steps.png")
    first = dict(reversed(pipelines))
    loaded = {name: load_pipeline(first[name], pick_device(device)) for name, _ in pipelines}
    save_figure(picture_strip(loaded, seed=seed), Path(output) / "pictures.png")
    return table


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG file, which is complete as soon as it exists."""
    with staged(file) as staging:
        figure.savefig(staging, format="png", dpi=150)


def quality_figure(rows: Sequence[dict]) -> Figure:
    """Fréchet distance against network calls: the mean of the seeds, and the range of them as a band."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (label, by_calls) in enumerate(by_label(rows).items()):
        calls = sorted(by_calls)
        fids = [[row["fid"] for row in by_calls[n]] for n in calls]
        colour = f"C{place % 10}"
        axes.plot(
            calls, [mean(f) for f in fids], color=colour, marker="osD^vPX*hd"[place % 10], markersize=4, label=label
        )
        axes.fill_between(calls, [min(f) for f in fids], [max(f) for f in fids], color=colour, alpha=0.2, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="network calls per image", ylabel="Fréchet distance")
    axes.set_xticks(TICKS, [str(n) for n in TICKS])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
    axes.legend(frameon=False, fontsize=8)
    return figure


def picture_strip(pipelines: Mapping[str, SiTPipeline], calls: Sequence[int] = PICTURE_CALLS, seed: int = 0) -> Figure:
    """Pictures of each model side by side, one number of network calls a row, all of a column from the same noise.

    Args:
        pipelines: pipelines of the same images and classes by the names of the models. A flow is sampled with the
            midpoint method, and with Euler's for one call.
        calls: numbers of network calls.
        seed: seed of the noise.
    """
    figure = Figure(figsize=(4.6 * len(pipelines), 0.46 * len(calls) + 0.3), layout="constrained")
    for axes, (name, pipeline) in zip(
        figure.subplots(1, len(pipelines), squeeze=False)[0], pipelines.items(), strict=True
    ):
        draw_panel(axes, np.stack([pictures(pipeline, n, seed) for n in calls]), calls)
        axes.set_title(name, fontsize=10, parse_math=False)
    return figure


def pictures(pipeline: SiTPipeline, calls: int, seed: int) -> np.ndarray:
    """The first images of a pipeline, one a class, in this number of network calls: (B, H, W, C)."""
    every = {name: (scheduler, steps) for name, scheduler, steps in few_step_samplers(pipeline, [calls])}
    scheduler, steps = next(every[name] for name in ("MeanFlow", "midpoint", "Euler") if name in every)
    labels = balanced_labels(range(PICTURES_PER_ROW), pipeline.transformer.config.num_classes)
    options = SamplingOptions(seed=seed, batch_size=PICTURES_PER_ROW, num_inference_steps=steps)
    return np.concatenate(list(generate(with_scheduler(pipeline, scheduler), labels, options)))


def draw_panel(axes: Axes, images: np.ndarray, calls: Sequence[int]) -> None:
    """Show images (rows, B, H, W, C) with the numbers of calls on the left."""
    rows, B, H, W, C = images.shape
    gap = max(1, H // 8)
    panel = np.full((rows, B, H + gap, W + gap, C), 255, np.uint8)
    panel[:, :, :H, :W] = images
    panel = panel.transpose(0, 2, 1, 3, 4).reshape(rows * (H + gap), B * (W + gap), C)
    panel = panel[:-gap, :-gap]
    axes.imshow(panel if C == 3 else panel[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks(
        [i * (H + gap) + (H - 1) / 2 for i in range(rows)],
        [f"{n} call{'s' if n > 1 else ''}" for n in calls],
        fontsize=8,
    )
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
