"""The report of eval/latency.py: every single time in latency.json, tables in latency.md, a plot in latency.png."""

import itertools
from pathlib import Path

from matplotlib.figure import Figure

from ..utils.files import staged, write_atomically, write_json
from ..utils.tables import markdown_table
from ..utils.text import counted, printable

HEADER = [
    *("measurement", "model", "image px", "batch", "dtype", "GMACs/image", "time [quartiles]", "rounds"),
    *("ratio to baseline", "images/s", "roofline", "peak beyond weights, MiB", "VAE"),
]


def write_results(folder: Path, report: dict) -> None:
    """Write the JSON file, the tables and the plot so that each file is whole at any moment."""
    write_json(folder / "latency.json", report)
    write_atomically(folder / "latency.md", report_text(report))
    figure = plot_forward(report["results"], machine_title(report["environment"]))
    if figure is not None:
        with staged(folder / "latency.png") as part:
            figure.savefig(part, dpi=120, format="png")


def machine_title(environment: dict) -> str:
    """The machine on which a report was measured, in one line: processor or GPU, threads on a CPU, torch."""
    threads = f", {counted(environment['threads'], 'thread')}" if environment.get("device") == "cpu" else ""
    return f"{environment['device_name']}{threads}, torch {environment['torch']}"


def report_text(report: dict) -> str:
    """The tables, headed by the command and the machine that made them."""
    facts, rates, rows = report["environment"], report["rates"], report["results"]
    attention = sorted({row["attention"] for row in rows if row.get("attention")})
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['date'][:10]}, {facts['device_name']}, {counted(facts['threads'], 'thread')}, "
        f"torch {facts['torch']}, compile {report['options']['compile']}, attention {', '.join(attention) or 'none'}, "
        f"commit {facts['git_commit'] or 'unknown'}; measured limits by dtype: "
        + "; ".join(f"{name} {flops / 1e9:.3g} GFLOP/s" for name, flops in rates["flops_per_second"].items())
        + f"; copying {rates['bytes_per_second'] / 1e9:.3g} GB/s",
        "",
        results_table(rows),
    ]
    if any("operations" in row for row in rows):
        lines += ["", "By PyTorch's profiler:", "", profile_table(rows)]
    return "\n".join(lines) + "\n"


def results_table(results: list[dict]) -> str:
    """The results as a Markdown table, with quartiles in brackets."""
    return markdown_table(HEADER, map(_cells, results), text_columns=2)


def _cells(result: dict) -> list[str]:
    """The cells of one result."""
    setting = [str(result[key]) for key in ("measurement", "name", "image_size", "batch_size", "dtype")]
    if "error" in result:
        return [*setting, "", result["error"], *[""] * (len(HEADER) - 7)]
    ratio_low, ratio, ratio_high = (f"{value:.3f}" for value in result["ratio"])
    macs, peak = result.get("macs_per_image"), result["peak_bytes"]
    return [
        *setting,
        "" if macs is None else f"{macs / 1e9:.2f}",
        time_text(*result["ms"]),
        str(len(result["times_ms"])),
        "" if result["baseline"] == result["name"] else f"{ratio} [{ratio_low}–{ratio_high}]",
        f"{result['images_per_second']:.4g}",
        _percent(result.get("roofline_share")),
        "" if peak is None else f"{peak / 2**20:.1f}",
        _percent(result.get("vae_share")),
    ]


def time_text(low: float, median: float, high: float) -> str:
    """A median in milliseconds with its quartiles, in seconds from one second on: "56.24 s [56.09–56.26]"."""
    unit, scale = ("s", 1000) if median >= 1000 else ("ms", 1)
    return f"{median / scale:.4g} {unit} [{low / scale:.4g}–{high / scale:.4g}]"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def profile_table(results: list[dict]) -> str:
    """Share of the time by operation, for the smallest and the largest image of each measurement: a Markdown table."""
    profiled = [row for row in results if "operations" in row]
    sizes: dict[str, set[int]] = {}
    for row in profiled:
        sizes.setdefault(row["measurement"], set()).add(row["image_size"])
    lines = ["| measurement | model | image px | share of the time by operation |", "| --- | --- | ---: | --- |"]
    for row in profiled:
        own_sizes = sizes[row["measurement"]]
        if row["image_size"] in (min(own_sizes), max(own_sizes)):
            shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in row["operations"].items())
            lines.append(f"| {row['measurement']} | {row['name']} | {row['image_size']} | {shares} |")
    return "\n".join(lines)


def plot_forward(results: list[dict], machine: str = "") -> Figure | None:
    """Forward latency against resolution, and its ratio to the baseline; None if only one resolution was measured.

    Of several groups of models, batch sizes and dtypes, the group with the most resolutions is drawn.

    Args:
        results: the rows of a report.
        machine: what they were measured on, for the title.
    """
    groups: dict[tuple[str, int, str], list[dict]] = {}
    for row in results:
        if row["measurement"] == "forward" and "error" not in row:
            groups.setdefault((row["baseline"], row["batch_size"], row["dtype"]), []).append(row)
    if not groups:
        return None
    (baseline, batch_size, dtype), rows = max(groups.items(), key=lambda item: len({r["image_size"] for r in item[1]}))
    sizes = sorted({row["image_size"] for row in rows})
    if len(sizes) < 2:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    latency_axes, ratio_axes = figure.subplots(1, 2)
    for marker, name in zip(itertools.cycle("osD^vPX"), dict.fromkeys(row["name"] for row in rows), strict=False):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["image_size"])
        x = [row["image_size"] for row in own]
        latency_axes.plot(x, [row["ms"][1] for row in own], marker=marker, label=name)
        low, ratio, high = zip(*(row["ratio"] for row in own), strict=True)
        ratio_axes.plot(x, ratio, marker=marker, label=name)
        ratio_axes.fill_between(x, low, high, alpha=0.2)
    if machine:
        figure.suptitle(printable(machine), fontsize="medium", parse_math=False)
    latency_axes.set(yscale="log", ylabel="forward pass, ms", title=f"batch {batch_size}, {dtype}")
    ratio_axes.set(ylabel=f"time / {baseline}", ylim=(0, None), title="ratio, with quartiles")
    for axes in (latency_axes, ratio_axes):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("image side, px")
        axes.grid(alpha=0.3)
    latency_axes.legend()
    return figure
