"""A latency benchmark: measure every setting of a plan, and keep each finished round whenever Ctrl-C comes."""

import importlib
import importlib.util
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from tqdm.auto import tqdm

from ..models.attention import SelfAttention
from ..models.macs import count_operations
from ..models.transformer_sit import SiTTransformer2DModel
from ..ops.linear_onednn import HAS_ONEDNN_PRODUCT
from ..utils.environment import describe_environment
from ..utils.text import counted
from .calls import VAE_ROW, build_models, first_mixer, make_calls, make_inputs, operator_inputs
from .profiling import peak_memory, time_by_operation
from .report import results_table, write_results
from .roofline import copy_bandwidth, matrix_rate, roofline_ms
from .settings import WITH_GRADIENTS, WITH_PROFILE, WITH_ROOFLINE, LatencyOptions, Setting
from .timing import CLOCKS, measure, quartiles, summarize

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
FAILED = 1  # exit status if a setting could not be measured
OUT_OF_MEMORY = "out of memory"


class Share(NamedTuple):
    """The time for the rounds of one setting.

    Attributes:
        seconds: time limit of the setting, see `timing.measure`.
        end: deadline of the whole plan, a time of `time.perf_counter`.
    """

    seconds: float
    end: float = math.inf


def run_latency(options: LatencyOptions, command: str, vae: nn.Module | None = None) -> int:
    """Measure the plan, write the report after each setting, and print the table.

    Args:
        options: what to measure and how.
        command: the command line that the report quotes.
        vae: the VAE of "sampling". If None, Stable Diffusion's architecture with random weights.

    Returns:
        The exit status: 0; 1 if a setting failed for another reason than memory; or 130 after an interrupt, which keeps
        every finished round.
    """
    now = datetime.now(timezone.utc)
    folder = Path(options.output or f"runs/latency-{now:%Y%m%d-%H%M%S}")
    report: dict = {
        "command": command,
        "date": now.isoformat(timespec="seconds"),
        "options": asdict(options),
        "interrupted": True,  # until everything is measured: the files are written after every setting
        "results": [],
    }
    try:
        measure_plan(options, folder, report, vae)
    except KeyboardInterrupt:
        if report["interrupted"]:
            what = "only what follows" if report["results"] else "nothing"
            print(f"interrupted: {what} was measured", file=sys.stderr)
    if report["results"]:
        print(results_table(report["results"]))
        print(f"\nIn {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if report["interrupted"]:
        return INTERRUPTED
    return FAILED if any(row.get("error", OUT_OF_MEMORY) != OUT_OF_MEMORY for row in report["results"]) else 0


def measure_plan(options: LatencyOptions, folder: Path, report: dict, vae: nn.Module | None) -> None:
    """Measure all settings. After each one, add its rows to `report` and write the report to `folder`."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device, plan = torch.device(options.device), options.plan
    dtypes = dict.fromkeys(setting.dtype for setting in plan)
    report["environment"] = describe_machine(device)
    clock = CLOCKS[options.clock]
    rates = report["rates"] = {
        "flops_per_second": {name: matrix_rate(getattr(torch, name), device, clock) for name in dtypes},
        "bytes_per_second": copy_bandwidth(device, clock),
    }
    models: dict[str, SiTTransformer2DModel] = {}
    built = None
    end = time.perf_counter() + (60 * options.minutes if options.minutes is not None else math.inf)
    for i, setting in enumerate(tqdm(plan, desc="settings", disable=None)):
        left = end - time.perf_counter()
        if left <= 0:
            report |= {"left_out": [asdict(each) for each in plan[i:]], "interrupted": False}
            if report["results"]:
                write_results(folder, report)
            print(
                f"minutes={options.minutes:g} are over: {i} of {counted(len(plan), 'setting')} measured",
                file=sys.stderr,
            )
            break
        share = Share(min(options.max_seconds, 2 * left / (len(plan) - i)), end)
        limits = (rates["flops_per_second"][setting.dtype], rates["bytes_per_second"])
        # Below float32, training runs under autocast with float32 weights.
        dtype = "float32" if setting.measurement in WITH_GRADIENTS else setting.dtype
        wanted = (setting.presets, dtype, setting.step_conditioning)
        try:
            if built != wanted:
                models, built = {}, None  # first: two groups of large models may not fit together
                models, built = build_models(wanted[0], getattr(torch, dtype), device, wanted[2]), wanted
            rows, interrupted = measure_setting(models, setting, options, device, limits, vae, share)
        except RuntimeError as error:  # the settings that follow may fit into memory, or compile
            rows, interrupted = [failed_row(setting, error)], False
        with uninterrupted():
            report["results"] += rows
            report["interrupted"] = interrupted or i + 1 < len(plan)
            if report["results"]:
                write_results(folder, report)
        if interrupted:
            raise KeyboardInterrupt
        if "error" in rows[0]:
            models, built = {}, None
            torch.cuda.empty_cache()


@dataclass
class Measured:
    """What was measured in one setting so far, by the name of the call; an interrupt leaves it partly filled."""

    times: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)
    interrupted: bool = False


def measure_setting(
    models: Mapping[str, SiTTransformer2DModel],
    setting: Setting,
    options: LatencyOptions,
    device: torch.device,
    rates: tuple[float, float],
    vae: nn.Module | None = None,
    share: Share | None = None,
) -> tuple[list[dict], bool]:
    """Measure every model in one setting.

    Args:
        models: models by preset, as `build_models` makes them.
        setting: what to measure.
        options: how to measure it.
        device: the device that holds the models.
        rates: floating-point operations and bytes per second that the device is capable of.
        vae: the VAE of "sampling". If None, Stable Diffusion's architecture with random weights.
        share: the time for its rounds. If None, that of the options.

    Returns:
        One row per call, and whether Ctrl-C interrupted the setting. In that case, the rows are of the finished rounds,
        and there are none if no round was finished.
    """
    if options.compile != "none":
        torch.compiler.reset()  # so that each setting is compiled for its own shapes
    calls, baselines = make_calls(models, setting, options, device, vae)
    facts = {name: model_facts(model, setting, device, rates) for name, model in models.items()}
    measured = Measured()
    try:
        measure_calls(calls, models, setting, options, device, measured, share or Share(options.max_seconds))
    except KeyboardInterrupt:
        measured.interrupted = True
    with uninterrupted():
        drop_gradients(models)
        rows = make_rows(setting, measured, baselines, facts)
    return rows, measured.interrupted


def measure_calls(
    calls: Mapping[str, Callable[[], object]],
    models: Mapping[str, nn.Module],
    setting: Setting,
    options: LatencyOptions,
    device: torch.device,
    measured: Measured,
    share: Share,
) -> None:
    """Fill `measured`: times of all calls in turn, then each call's peak memory and profile."""
    with torch.inference_mode(setting.measurement not in WITH_GRADIENTS):
        clock, end = CLOCKS[options.clock], share.end
        measure(calls, options.repeats, options.warmup, device, share.seconds, measured.times, clock, end)
        for name, call in calls.items():
            drop_gradients(models)
            # CUDA graphs reserve their memory for good, so that it would count as nothing.
            measured.memory[name] = None if options.cuda_graphs or setting.cuda_graphs else peak_memory(call, device)
            if setting.measurement in WITH_PROFILE:
                measured.profiles[name] = time_by_operation(call, device)


def make_rows(
    setting: Setting, measured: Measured, baselines: Mapping[str, str], facts: Mapping[str, dict]
) -> list[dict]:
    """The rows of one setting, one per call, from its measurements and from the facts about its models."""
    rows = []
    for name, summary in summarize(measured.times, baselines).items():
        ms = summary["ms"][1]
        row = describe_setting(setting) | {"name": name, "peak_bytes": measured.memory.get(name), **summary}
        row["images_per_second"] = setting.batch_size * 1e3 / ms
        row |= facts.get(name.partition(",")[0], {})
        if "roofline_ms" in row:
            row["roofline_share"] = row["roofline_ms"] / ms
        if name in measured.profiles:
            row["operations"] = measured.profiles[name]
        if setting.measurement == "sampling" and name in facts:
            row["vae_share"] = quartiles(measured.times[VAE_ROW])[1] / ms
        rows.append(row)
    return rows


def failed_row(setting: Setting, error: RuntimeError) -> dict:
    """The row of a setting that could not be measured. Unless memory was short, the error is printed, too."""
    reason = OUT_OF_MEMORY
    if not isinstance(error, torch.OutOfMemoryError):
        traceback.print_exception(error)
        reason = f"failed: {type(error).__name__}"
    return describe_setting(setting) | {"name": ", ".join(setting.presets), "error": reason}


def describe_setting(setting: Setting) -> dict:
    """The part of a setting that all of its rows share."""
    return {name: value for name, value in asdict(setting).items() if name != "presets"}


def model_facts(
    model: SiTTransformer2DModel, setting: Setting, device: torch.device, rates: tuple[float, float]
) -> dict:
    """What is known about a model in a setting before it is timed: parameters, attention, operations, roofline."""
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": attention_backend(model, setting, device),
    }
    if setting.measurement not in WITH_ROOFLINE:
        return facts
    if setting.measurement == "operator":
        operations = count_operations(first_mixer(model), *operator_inputs(model, setting, device))
    else:
        inputs = make_inputs(model, setting, device)
        training = setting.measurement == "training"
        operations = count_operations(model, *inputs, backward=training, dtype=getattr(torch, setting.dtype))
    facts["macs_per_image"] = sum(flops for flops, _ in operations) // 2 // setting.batch_size
    facts["roofline_ms"] = roofline_ms(operations, *rates)
    return facts


def attention_backend(model: SiTTransformer2DModel, setting: Setting, device: torch.device) -> str | None:
    """The implementation that PyTorch picks for the model's self-attention, such as FLASH_ATTENTION.

    None if the model has no self-attention.
    """
    heads = next((block.mixer.num_heads for block in model.blocks if isinstance(block.mixer, SelfAttention)), None)
    if heads is None:
        return None
    tokens = (setting.latent_size // model.config.patch_size) ** 2
    shape = (setting.batch_size, tokens, 3, heads, model.config.attention_head_dim)
    training = setting.measurement in WITH_GRADIENTS
    qkv = torch.empty(shape, dtype=getattr(torch, setting.dtype), device=device, requires_grad=training)
    with torch.set_grad_enabled(training):
        return SDPBackend(torch._fused_sdp_choice(*qkv.permute(2, 0, 3, 1, 4))).name


def describe_machine(device: torch.device) -> dict:
    """The environment that times depend on, as latency.json records it."""
    described = describe_environment(device)
    versions, on_gpu = described["versions"], device.type == "cuda"
    triton = importlib.util.find_spec("triton") and importlib.import_module("triton")
    return {
        "device": described["device"],
        "device_name": described["device_name"],
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": described["tf32"]["matmul"] if on_gpu else None,
        "onednn_products": device.type == "cpu" and HAS_ONEDNN_PRODUCT and torch.backends.mkldnn.enabled,
        "python": versions["python"],
        "torch": versions["torch"],
        "cuda": torch.version.cuda if on_gpu else None,
        "triton": triton.__version__ if triton else None,
        "diffusers": versions["diffusers"],
        "sit_atconv": versions["sit_atconv"],
        "git_commit": described["git_commit"],
    }


def drop_gradients(models: Mapping[str, nn.Module]) -> None:
    """Free the gradients that training steps left."""
    for model in models.values():
        model.zero_grad(set_to_none=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the block is done, so that measured rows get into the report and files are written whole."""
    pressed: list[bool] = []
    handler = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)
