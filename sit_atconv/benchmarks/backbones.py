"""Forward passes of image backbones, in turns: AttNet, its reference's layout, and other models of timm."""

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..models.attnet import AttNet
from ..models.attnet_names import read_arguments, to_reference
from ..models.timm_encoders import check_timm_model
from ..models.timm_names import check_timm_name
from ..utils.checks import check_choice, check_count, check_device, check_positive
from ..utils.environment import describe_environment, pick_device
from ..utils.files import check_new_file, write_json
from ..utils.tables import markdown_table
from .naive_attnet import NaiveAttNet
from .profiling import time_by_operation
from .timing import CLOCKS, measure, summarize

LAYOUT = "-reference-layout"  # after the name of an AttNet
MODELS = (
    "attnet_t2",
    "attnet_t2-reference-layout",
    "convnext_tiny",
    "inception_next_tiny",
    "caformer_s18",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b2",
    "maxvit_tiny_tf_224",
)
HEADER = ["model", "M parameters", "ms [quartiles]", "rounds", "time of the first model / its own [quartiles]"]


def build_backbone(name: str, image_size: int = 224) -> nn.Module:
    """Create a model with random weights, in eval mode.

    Args:
        name: a name of timm; or that of an AttNet with "-reference-layout" for `NaiveAttNet` with the same weights.
        image_size: side of the images, for models that need to know it.

    Raises:
        ValueError: if there is no such model.
    """
    torch.manual_seed(0)
    if name.endswith(LAYOUT):
        ours = build_backbone(name.removesuffix(LAYOUT), image_size)
        if not isinstance(ours, AttNet):
            raise ValueError(f"models: {name!r}: only AttNet has a reference layout, such as attnet_t2{LAYOUT}")
        return reference_layout(ours)
    check_timm_model("models", name, name)
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    return timm.create_model(name, **({"img_size": image_size} if fixed else {})).eval()


def reference_layout(model: AttNet) -> NaiveAttNet:
    """An AttNet of one of the published sizes in the layout of the reference, with the same weights."""
    state = model.state_dict()
    found = read_arguments(state)
    naive = NaiveAttNet(
        found["depths"],
        found["dims"],
        found["hidden"],
        found["kernel_sizes"],
        found["use_layer_scale"],
        any(found["glu_norm"]),
        model.num_classes,
    )
    naive.load_state_dict(to_reference(state))
    return naive.eval()


def backbone_latency(
    models: list[str] | None = None,
    image_size: int = 224,
    batch_size: int = 1,
    repeats: int = 20,
    max_seconds: float = 100.0,
    clock: str = "wall",
    threads: int | None = None,
    device: str = "auto",
    profile: bool = False,
    output: str | None = None,
) -> dict[str, Any]:
    """Time forward passes of models with random weights in float32; all of them take turns within each round.

    Args:
        models: names of timm; an AttNet's with "-reference-layout" stands for planes and 1×1 convolutions. All are
            compared with the first one. Defaults to AttNet-T2, its reference's layout, and six models of its size.
        image_size: side of the images in pixels.
        batch_size: number of images per forward pass.
        repeats: number of rounds.
        max_seconds: after this time, no round begins, but there are at least 3.
        clock: wall, or cpu for the time that this process had of a CPU, where other programs share the machine.
        threads: number of CPU threads; PyTorch's default if None.
        device: such as cpu or cuda; auto is the accelerator if there is one.
        profile: add the share of the time by operation, by PyTorch's profiler.
        output: a new JSON file for all times. If None, none is written.

    Returns:
        The report.

    Raises:
        ValueError: naming what cannot be used.
    """
    for name, value in (("image_size", image_size), ("batch_size", batch_size), ("repeats", repeats)):
        check_count(name, value)
    check_positive("max_seconds", max_seconds)
    check_new_file("output", output)
    models = list(MODELS) if models is None else models
    if not models or len(set(models)) < len(models):
        raise ValueError(f"models={models} must name at least one, and each only once")
    if threads is not None:
        check_count("threads", threads)
    check_choice("clock", clock, ("wall", "cpu"))
    check_device("device", device)
    for name in models:
        check_timm_name("models", name, name.removesuffix(LAYOUT))
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    if clock == "cpu" and torch.device(place).type != "cpu":
        raise ValueError(f"clock=cpu does not see the time of device={place}; use wall")
    networks = {name: build_backbone(name, image_size).to(place) for name in models}
    x = torch.randn(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(place)
    calls = {name: lambda network=network: network(x) for name, network in networks.items()}
    keep_freed_memory()
    with torch.inference_mode():
        times = measure(calls, repeats, 2, torch.device(place), max_seconds, clock=CLOCKS[clock])
        shares = {name: time_by_operation(call, torch.device(place)) for name, call in calls.items()} if profile else {}
    rows = summarize(times, dict.fromkeys(models, models[0]))
    for name, row in rows.items():
        row["parameters"] = sum(parameter.numel() for parameter in networks[name].parameters())
        row["operations"] = shares.get(name)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "image_size": image_size,
        "batch_size": batch_size,
        "clock": clock,
        "environment": describe_environment(torch.device(place)) | {"threads": torch.get_num_threads()},
        "load": os.getloadavg()[0],
        "results": rows,
    }
    if output is not None:
        write_json(Path(output), report)
    return report


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, up to 62 MiB, instead of returning it to the system.

    It returns what exceeds twice the largest block that was ever freed, so whether a model waits for the pages of its
    maps in each forward pass, a fifth of the time of some, would depend on what else the process has done.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)  # freed at once; blocks above 32 MiB do not count


def backbone_table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, followed by the profile if there is one."""
    rows = report["results"]
    lines = [markdown_table(HEADER, (_cells(name, row) for name, row in rows.items()), text_columns=1)]
    for name, row in rows.items():
        if row["operations"]:
            shares = ", ".join(f"{operation} {share:.1%}" for operation, share in row["operations"].items())
            lines.append(f"\n{name}: {shares}")
    return "\n".join(lines)


def _cells(name: str, row: dict[str, Any]) -> Sequence[str]:
    low, middle, high = row["ms"]
    # the inverse of the ratio, so that a number below 1 means that the first model is the faster one
    slow, ratio, fast = (1 / value for value in row["ratio"])
    return [
        name,
        f"{row['parameters'] / 1e6:.1f}",
        f"{middle:.4g} [{low:.4g}–{high:.4g}]",
        str(len(row["times_ms"])),
        "" if row["baseline"] == name else f"{ratio:.2f} [{fast:.2f}–{slow:.2f}]",
    ]
