"""How time and memory grow: with tokens and with the batch, as measured; with the number of GPUs, on paper.

N tokens, B batch, n GPUs, P parameters.
"""

import itertools
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..models.costs import closed_form_macs, count_parameters, preset_config
from ..models.presets import PRESETS
from ..utils.bounded_text import read_json_object
from ..utils.checks import check_choice, check_count, check_positive
from ..utils.files import check_new_file, staged
from ..utils.tables import markdown_table
from .report import machine_title
from .settings import PIXELS_PER_LATENT

PAPER_MODELS = ["SiT-XL/2", "SiT-ATConv-XL/2"]
GPUS = (8, 16, 64, 256, 1024)
GPUS_IN_A_NODE = 8
GRADIENT_BYTES = 4  # float32, as DistributedDataParallel reduces them
TRAINING_FLOPS = 6  # for each multiply-accumulate of a forward pass: 2 there, 4 in the backward pass


def draw_growth(
    files: list[str],
    output: str,
    presets: list[str] = PAPER_MODELS,
    gpu_batch_size: int = 32,
    teraflops: float = 396.0,
    node_bandwidth: float = 450.0,
    network_bandwidth: float = 400.0,
) -> str:
    """Draw the growth of forward passes in reports of eval/latency.py, and that of training over GPUs, by formula.

    Args:
        files: reports, latency.json, whose rows of "forward" are drawn together.
        output: a new picture.
        presets: models of the formula, at 256 px.
        gpu_batch_size: images of a training step on each GPU.
        teraflops: speed of a GPU in training. In 10¹² floating-point operations per second; 396 are 40 % of an H100's
            dense bfloat16.
        node_bandwidth: GB/s in a node. What a GPU sends within its node of 8, such as NVLink's 450.
        network_bandwidth: GB/s between nodes. The same where a ring passes through several nodes: 8 adapters of 400
            Gbit/s carry 400.

    Returns:
        The formula's table in Markdown.

    Raises:
        ValueError: if a report cannot be used.
    """
    for preset in presets:
        check_choice("preset", preset, PRESETS)
    check_count("gpu_batch_size", gpu_batch_size)
    check_positive("teraflops", teraflops)
    check_positive("node_bandwidth", node_bandwidth)
    check_positive("network_bandwidth", network_bandwidth)
    check_new_file("output", output)
    reports = [read_report(file) for file in files]
    groups = [rows for report in reports if (rows := [row for row in report["results"] if is_drawn(row)])]
    if not groups:
        raise ValueError(f"files={files} hold no row of the measurement forward; measure it with eval/latency.py")
    paper = {name: paper_steps(name, gpu_batch_size, teraflops, node_bandwidth, network_bandwidth) for name in presets}
    figure = growth_figure(groups, paper, machine_title(reports[0]["environment"]))
    with staged(Path(output)) as part:
        figure.savefig(part, dpi=120, format="png")
    return paper_table(paper)


def read_report(file: str) -> dict:
    """Read a report of eval/latency.py.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        report = read_json_object(Path(file))
    except OSError as error:
        raise ValueError(f"files={file!r} cannot be read: {error.strerror}; name a latency.json") from error
    if not {"results", "environment"} <= report.keys():
        raise ValueError(f"files={file!r} is not a report; name a latency.json of eval/latency.py")
    return report


def is_drawn(row: dict) -> bool:
    """Whether a row of a report is a forward pass that was measured."""
    return row["measurement"] == "forward" and "error" not in row


def tokens_of(row: dict) -> int:
    """N of a row."""
    return (row["image_size"] // PIXELS_PER_LATENT // int(PRESETS[row["name"]]["patch_size"])) ** 2


def paper_steps(
    preset: str, batch_size: int, teraflops: float, node_bandwidth: float, network_bandwidth: float
) -> list[dict]:
    """A training step of data-parallel GPUs, for each number of `GPUS`.

    A GPU computes 6 · MACs · B / rate seconds. A ring all-reduce sends 2 · (n − 1) / n · 4 P bytes from each GPU, at
    the bandwidth of the node or of the network. Latency of messages is left out. At best, the all-reduce is hidden
    behind the backward pass, two thirds of the computation.

    Args:
        preset: the model, at 256 px.
        batch_size: images on each GPU.
        teraflops, node_bandwidth, network_bandwidth: see `draw_growth`.
    """
    config = preset_config(preset)
    compute = TRAINING_FLOPS * closed_form_macs(config, 32, 32) * batch_size / (teraflops * 1e12)
    steps = []
    for n in GPUS:
        sent = 2 * (n - 1) / n * GRADIENT_BYTES * count_parameters(config)
        reduce = sent / (1e9 * (node_bandwidth if n <= GPUS_IN_A_NODE else network_bandwidth))
        best = compute + max(0.0, reduce - 2 / 3 * compute)
        steps.append({"gpus": n, "sent": sent, "compute": compute, "reduce": reduce, "best": best})
    return steps


def paper_table(paper: dict[str, list[dict]]) -> str:
    """The steps of `paper_steps` by preset, as a Markdown table."""
    header = (
        "model",
        "GPUs",
        "GB sent by each",
        "all-reduce, ms",
        "computation, ms",
        "efficiency, hidden",
        "not hidden",
    )
    rows = [
        [
            name,
            step["gpus"],
            f"{step['sent'] / 1e9:.2f}",
            f"{1e3 * step['reduce']:.1f}",
            f"{1e3 * step['compute']:.1f}",
            f"{100 * step['compute'] / step['best']:.0f} %",
            f"{100 * step['compute'] / (step['compute'] + step['reduce']):.0f} %",
        ]
        for name, steps in paper.items()
        for step in steps
    ]
    return markdown_table(header, rows)


def growth_figure(groups: list[list[dict]], paper: dict[str, list[dict]], machine: str = "") -> Figure:
    """Time and memory against tokens and batch, and steps against GPUs.

    Args:
        groups: rows of "forward" of each report. A curve shows times of one report, since the machine may have been
            busier during another: against tokens, the one with the most image sizes at one batch size, and against the
            batch, the one with the most batch sizes at one image size.
        paper: the steps of `paper_steps`, by preset.
        machine: what the rows were measured on, for the title.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    batch, by_tokens = largest_sweep(groups, "batch_size", "image_size")
    size, by_batch = largest_sweep(groups, "image_size", "batch_size")
    for column, label, kept, x_of in (
        (0, f"tokens (batch {batch})", by_tokens, tokens_of),
        (1, f"batch ({size} px)", by_batch, lambda row: row["batch_size"]),
    ):
        draw_curves(panels[0][column], kept, x_of, lambda row: row["ms"][1], "forward pass, ms", label)
        with_memory = [row for row in kept if row["peak_bytes"]]
        draw_curves(
            panels[1][column], with_memory, x_of, lambda row: row["peak_bytes"] / 2**20, "beyond weights, MiB", label
        )
    for name, steps in paper.items():
        x = [step["gpus"] for step in steps]
        (line,) = panels[0][2].plot(x, [1e3 * step["reduce"] for step in steps], "--", label=f"{name}, all-reduce")
        panels[0][2].plot(x, [1e3 * step["compute"] for step in steps], color=line.get_color(), label=f"{name}, step")
        panels[1][2].plot(x, [step["sent"] / 1e9 for step in steps], marker="o", label=name)
    for axes, label in ((panels[0][2], "ms, by formula"), (panels[1][2], "GB sent by each GPU")):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="GPUs", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    if machine:
        figure.suptitle(machine, fontsize="medium", parse_math=False)
    return figure


def largest_sweep(groups: list[list[dict]], fixed: str, varied: str) -> tuple[int, list[dict]]:
    """The rows of one report with one value of `fixed` that have the most values of `varied`, and that value."""
    candidates = [
        (value, [row for row in rows if row[fixed] == value])
        for rows in groups
        for value in sorted({row[fixed] for row in rows})
    ]
    return max(candidates, key=lambda found: len({row[varied] for row in found[1]}))


def draw_curves(axes: Axes, rows: list[dict], x_of, y_of, y_label: str, x_label: str) -> None:
    """One curve for each model, both axes logarithmic."""
    for marker, name in zip(itertools.cycle("osD^vPX"), dict.fromkeys(row["name"] for row in rows), strict=False):
        own = sorted((row for row in rows if row["name"] == name), key=x_of)
        axes.plot([x_of(row) for row in own], [y_of(row) for row in own], marker=marker, label=name)
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(fontsize="small")
