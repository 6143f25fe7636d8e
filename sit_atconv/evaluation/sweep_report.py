"""The report of a sweep: tables, and a heat map of guidance scales and intervals for each average of the weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..utils.files import staged, write_atomically
from ..utils.tables import markdown_table
from .sweep import measure_sweep
from .sweep_options import SweepOptions
from .sweep_settings import Setting, interval_text


def write_sweep(options: SweepOptions) -> str:
    """Measure, and write tables (sweep.md) and a heat map (sweep.png) beside the results.

    Returns:
        The tables.
    """
    result = measure_sweep(options)
    text = sweep_text(result)
    output = Path(options.output)
    write_atomically(output / "sweep.md", text + "\n")
    with staged(output / "sweep.png") as part:
        heat_map(result["settings"]).savefig(part, format="png", dpi=150)
    return text


def sweep_text(result: Mapping) -> str:
    """What the search found, what other noise says about it, and how many images that took."""
    rows, confirmed = result["settings"], result["confirmation"]
    drawn, whole = sum(row["images"] for row in rows), len(rows) * result["num_samples"]
    best = confirmed[0]
    return "\n\n".join(
        [
            search_table(rows),
            f"Dropped settings saved {1 - drawn / whole:.0%} of the search's {whole} images.",
            "With noise that the search has not seen (behind: 95 % interval over images):",
            confirmation_table(confirmed),
            f"Choice: {Setting(best['average'], best['scale'], tuple(best['interval']))}; {best['fid']:.4f}.",
        ]
    )


def search_table(rows: Sequence[Mapping]) -> str:
    """The settings of the search, the best first; those that were dropped come after those that were not."""
    ordered = sorted(rows, key=lambda row: (-row["images"], row["fid"]))
    cells = [
        [
            *_names(row),
            row["images"],
            f"{row['fid']:.4f}",
            f"{row['behind']:.4f} ± {row['standard_error']:.4f}",
            "dropped" if row["dropped"] else "",
        ]
        for row in ordered
    ]
    head = ["average", "scale", "interval", "images", "Fréchet distance", "behind the best", ""]
    return markdown_table(head, cells, text_columns=1)


def confirmation_table(rows: Sequence[Mapping]) -> str:
    """The settings that drew images with other noise, the choice of the search first."""
    cells = [
        [
            *_names(row),
            row["images"],
            f"{row['fid']:.4f}",
            "" if row is rows[0] else "{:.4f} [{:.4f}, {:.4f}]".format(row["behind"], *row["behind_interval"]),
        ]
        for row in rows
    ]
    return markdown_table(["average", "scale", "interval", "images", "Fréchet distance", "behind"], cells)


def _names(row: Mapping) -> list[str]:
    return [row["average"], f"{row['scale']:g}", "–" if row["scale"] == 1 else interval_text(row["interval"])]


def heat_map(rows: Sequence[Mapping]) -> Figure:
    """How far each setting is behind the best, both with the same images; dropped settings are in brackets.

    Without guidance (scale 1) there is one value for all intervals. Colours tell the better half apart.
    """
    averages = list(dict.fromkeys(row["average"] for row in rows))
    scales = sorted({row["scale"] for row in rows})
    intervals = sorted({tuple(row["interval"]) for row in rows if row["scale"] != 1}) or [(0.0, 1.0)]
    size = (1.8 + 0.85 * len(scales), (0.7 + 0.45 * len(intervals)) * len(averages) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    most = float(np.median([row["behind"] for row in rows]))
    for axes, average in zip(figure.subplots(len(averages), squeeze=False)[:, 0], averages, strict=True):
        mine = {(row["scale"], tuple(row["interval"])): row for row in rows if row["average"] == average}
        cells = [[mine.get((s, (0.0, 1.0) if s == 1 else i)) for s in scales] for i in intervals]
        image = _draw_panel(axes, cells, most)
        axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        axes.set_yticks(range(len(intervals)), [interval_text(interval) for interval in intervals])
        axes.set_title(average, fontsize=9, parse_math=False)
    axes.set_xlabel("guidance scale")
    figure.supylabel("interval of t", fontsize=10)
    figure.colorbar(image, ax=figure.axes, label="Fréchet distance behind the best", extend="max")
    return figure


def _draw_panel(axes: Axes, cells: Sequence[Sequence[Mapping | None]], most: float):
    """Draw one average; colours end at `most`."""
    values = np.array([[np.nan if row is None else row["behind"] for row in line] for line in cells])
    image = axes.imshow(values, cmap="viridis_r", vmin=0, vmax=max(most, 1e-12), aspect="auto")
    for y, line in enumerate(cells):
        for x, row in enumerate(line):
            if row is not None:
                text = f"{row['behind']:.3g}"
                dark = row["behind"] > 0.6 * most
                axes.text(
                    x,
                    y,
                    f"({text})" if row["dropped"] else text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
    return image
