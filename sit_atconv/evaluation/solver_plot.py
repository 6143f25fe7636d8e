"""A plot of each sampler's error against its number of network calls."""

from matplotlib import colormaps
from matplotlib.figure import Figure

COLOURS = colormaps["tab20"]
MARKERS = "osv^D"


def plot_errors(rows: list[dict]) -> Figure:
    """Draw the rows of `compare_samplers`, one line per sampler, both axes logarithmic.

    Samplers of the same kind share a line style: solid for fixed steps, dashed for adaptive steps, dotted for
    diffusers' schedulers.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, name in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
        mine = [row for row in rows if row["sampler"] == name]
        axes.plot(
            [row["network_calls"] for row in mine],
            [row["rms_error"] for row in mine],
            label=name,
            linestyle=_style(mine[0]),
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            color=COLOURS(index % COLOURS.N),
        )
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="RMS error")
    axes.grid(which="both", alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _style(row: dict) -> str:
    if row["setting"].startswith("rtol"):
        return "--"
    return ":" if row["sampler"].startswith("diffusers ") else "-"
