"""Measure SiT with self-attention, with ATConv, and with both: time, memory, and the share of what the hardware allows.

    python eval/latency.py                                      # the plan for this machine: about half an hour on a CPU
    python eval/latency.py --presets '[SiT-XL/2, SiT-ATConv-XL/2]' --image_sizes '[256, 512]' --batch_sizes '[1, 8]' \
        --measurements '[operator, forward]' --dtypes '[bfloat16]' --compile whole

All models take turns within every repeat, so that a slow or fast phase of the machine meets them alike, and the ratio
to the baseline is taken within each repeat before its median. Writes every single time (latency.json), a Markdown table
(latency.md) and a plot of forward latency against resolution (latency.png).

Image sizes are in pixels; the network sees latents of an eighth of them. Times are wall-clock milliseconds of one call,
from its launch until the device is done. Measurements:

    operator       the token mixer of one block: projections, kernel generation and convolution, or attention
    forward        one forward pass of the whole model
    training       forward and backward pass; below float32, under autocast with float32 weights
    checkpointing  the same with gradient checkpointing, against the model without
    sampling       the pipeline from labels to images, VAE included (never compiled); midpoint steps of two calls
    sde            an SDE solve, against one that calls the network twice a step, as for drift and score apart
"""

import importlib
import importlib.util
import itertools
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from torch import nn
from torch.nn.attention import SDPBackend
from tqdm.auto import tqdm

import sit_atconv
from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.benchmarks.timing import (
    copy_bandwidth,
    matrix_rate,
    measure,
    peak_memory,
    quartiles,
    roofline_ms,
    summarize,
    time_by_operation,
)
from sit_atconv.flow.guidance import GuidedModel
from sit_atconv.models.macs import count_operations
from sit_atconv.models.transformer_sit import PRESETS, SelfAttention
from sit_atconv.models.vae import decode, load_vae, vae_scale_factor
from sit_atconv.ops.linear import HAS_ONEDNN_PRODUCT
from sit_atconv.utils.checks import check_choice, check_count, check_positive
from sit_atconv.utils.environment import device_name, git_commit
from sit_atconv.utils.files import check_new_file, staged, write_json

MEASUREMENTS = ("operator", "forward", "training", "checkpointing", "sampling", "sde")
TRAINING = ("training", "checkpointing")
COUNTED = ("operator", "forward", "training")  # whose operations are counted
PROFILED = (*COUNTED, "sampling")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")
COMPILE = ("none", "blocks", "whole")
PIXELS_PER_LATENT = 8  # of the VAE, on each side
INTERRUPTED = 130  # exit status, as shells have it
VAE_ROW = "VAE decoding"
# The architecture of Stable Diffusion's VAE. Speed does not depend on the weights.
VAE_CONFIG = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
)


@dataclass(frozen=True)
class Setting:
    """One group of models that take turns."""

    measurement: str
    presets: tuple[str, ...]
    image_size: int
    batch_size: int
    dtype: str


def family(size: str) -> tuple[str, ...]:
    """The three mixers of a size, self-attention first."""
    return f"SiT-{size}", f"SiT-ATConv-{size}", f"SiT-ATConv-{size}-Hybrid"


PLANS = {
    "cpu": [
        Setting("operator", family("XL/2")[:2], 256, 1, "float32"),
        Setting("forward", family("XL/2"), 256, 1, "float32"),
        *(Setting("forward", family("S/2"), size, 1, "float32") for size in (256, 512, 1024, 2048)),
        *(Setting("training", family("S/2"), size, 4, "float32") for size in (256, 512)),
        Setting("checkpointing", family("S/2")[:2], 256, 4, "float32"),
        Setting("sampling", family("S/2"), 256, 1, "float32"),
        Setting("sde", family("S/2")[1:2], 128, 1, "float32"),
    ],
    "cuda": [
        *(Setting("operator", family("XL/2")[:2], size, 32, "bfloat16") for size in (256, 512, 1024)),
        *(Setting("forward", family("XL/2"), size, 32, "bfloat16") for size in (256, 512, 1024)),
        *(Setting("forward", family("XL/2"), size, 1, "bfloat16") for size in (256, 512, 1024, 2048)),
        *(Setting("training", family("XL/2"), size, 32, "bfloat16") for size in (256, 512)),
        Setting("checkpointing", family("XL/2")[:2], 256, 32, "bfloat16"),
        Setting("sampling", family("XL/2"), 256, 8, "bfloat16"),
        Setting("sde", family("S/2")[1:2], 256, 8, "bfloat16"),
    ],
}


@dataclass
class Options:
    """What to measure, and how. The first five make up a plan of their own, all with all; without any of them, the plan
    for the device is measured.

    Args:
        measurements: any of operator, forward, training, checkpointing, sampling, sde.
        presets: models by their published names, each once. The first is the baseline of the ratios.
        image_sizes: sides of the square images, in pixels: multiples of 8 × patch size.
        batch_sizes: images in one call.
        dtypes: of weights and latents: float32, bfloat16 or float16.
        device: cpu, cuda, or auto: CUDA where there is a GPU.
        compile: none, blocks (torch.compile of the repeated block), or whole (of the model, without a graph break,
            anew for each setting). Where null, whole on CUDA and none on CPUs.
        cuda_graphs: compile in PyTorch's "reduce-overhead" mode.
        warmup: rounds that run first and are not counted.
        repeats: rounds that are counted; each runs every model once.
        max_seconds: for each setting; no round is begun after that, once 3 have been counted.
        steps: solver steps of "sampling", of the midpoint method: two network calls each.
        sde_steps: solver steps of "sde".
        vae: of "sampling": a folder or a name on the Hub; where null, Stable Diffusion's architecture with random
            weights, which is as fast.
        threads: CPU threads within an operation; PyTorch's choice where null.
        output: a folder to make for the results; runs/latency-DATE-TIME where null.

    Raises:
        ValueError: naming the field, the value and what it may be.
    """

    measurements: list[str] | None = None
    presets: list[str] | None = None
    image_sizes: list[int] | None = None
    batch_sizes: list[int] | None = None
    dtypes: list[str] | None = None
    device: str = "auto"
    compile: str | None = None
    cuda_graphs: bool = False
    warmup: int = 2
    repeats: int = 20
    max_seconds: float = 90.0
    steps: int = 10
    sde_steps: int = 250
    vae: str | None = None
    threads: int | None = None
    output: str | None = None

    def __post_init__(self):
        check_choice("device", self.device, DEVICES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda', but PyTorch sees no GPU here; choose cpu or auto")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.compile is None:
            self.compile = "whole" if self.device == "cuda" else "none"
        check_choice("compile", self.compile, COMPILE)
        if self.cuda_graphs and (self.device == "cpu" or self.compile != "whole"):
            raise ValueError("cuda_graphs=True needs --device cuda and --compile whole")
        for name in ("warmup", "repeats", "steps", "sde_steps"):
            check_count(name, getattr(self, name))
        check_positive("max_seconds", self.max_seconds)
        if self.threads is not None:
            check_count("threads", self.threads)
        for name in ("measurements", "presets", "image_sizes", "batch_sizes", "dtypes"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name}={values} must name at least one, and each only once")
        for setting in self.plan:
            check_setting(setting)
        if self.vae is not None and not any(setting.measurement == "sampling" for setting in self.plan):
            raise ValueError(f"vae={self.vae!r} is for the measurement sampling; add that, or leave vae out")
        check_new_file("output", self.output)

    @property
    def plan(self) -> list[Setting]:
        """The settings, in the order in which they are measured."""
        own = (self.measurements, self.presets, self.image_sizes, self.batch_sizes, self.dtypes)
        if all(values is None for values in own):
            return PLANS[self.device]
        default = family("S/2")[:2] if "operator" in (self.measurements or []) else family("S/2")
        presets = tuple(self.presets or default)
        default_dtype = "bfloat16" if self.device == "cuda" else "float32"
        combinations = itertools.product(
            self.measurements or ["forward"],
            self.dtypes or [default_dtype],
            self.image_sizes or [256],
            self.batch_sizes or [1],
        )
        return [Setting(what, presets, size, batch, dtype) for what, dtype, size, batch in combinations]


def check_setting(setting: Setting) -> None:
    """Raise ValueError naming what cannot be measured."""
    check_choice("measurement", setting.measurement, MEASUREMENTS)
    check_choice("dtype", setting.dtype, DTYPES)
    check_count("batch_size", setting.batch_size)
    check_count("image_size", setting.image_size)
    for preset in setting.presets:
        check_choice("preset", preset, PRESETS)
        multiple = PIXELS_PER_LATENT * PRESETS[preset]["patch_size"]
        if setting.image_size % multiple:
            raise ValueError(
                f"image_size={setting.image_size} is not divisible by {multiple}, 8 × patch size of {preset}"
            )
        if setting.measurement == "operator" and PRESETS[preset]["mixer"] == "hybrid":
            raise ValueError(f"preset={preset!r} has two operators; measure those of the other presets")


def build_models(
    presets: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, SiTTransformer2DModel]:
    """Models in eval mode whose zero-initialised weights are small random numbers.

    As initialised, every block is switched off and the output is 0; arithmetic on zeros may run faster than on
    trained weights.
    """
    models = {}
    for preset in presets:
        with torch.device(device):
            model = SiTTransformer2DModel.from_preset(preset).eval()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        models[preset] = nn.Module.to(model, dtype)  # diffusers' own `to` warns of float32 modules, even of none
    return models


def make_inputs(
    model: SiTTransformer2DModel, image_size: int, batch_size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, C, S/8, S/8), times (B,) and labels (B,), always the same ones."""
    generator = torch.Generator().manual_seed(0)
    side = image_size // PIXELS_PER_LATENT
    latents = torch.randn(batch_size, model.config.in_channels, side, side, generator=generator)
    times = torch.rand(batch_size, generator=generator)
    labels = torch.randint(model.config.num_classes, (batch_size,), generator=generator)
    return latents.to(device, model.dtype), times.to(device), labels.to(device)


def compiled(module: nn.Module, options: Options) -> nn.Module:
    """The module as the options want it compiled; fullgraph refuses a graph break."""
    if options.compile == "none":
        return module
    if options.compile == "blocks" and isinstance(module, SiTTransformer2DModel):
        module.compile_repeated_blocks(fullgraph=True)
        return module
    mode = "reduce-overhead" if options.cuda_graphs else None
    return torch.compile(module, dynamic=False, fullgraph=True, mode=mode)


def operator_inputs(model: SiTTransformer2DModel, setting: Setting, device: torch.device) -> tuple:
    """Tokens (B, N, D) and their grid."""
    side = setting.image_size // PIXELS_PER_LATENT // model.config.patch_size
    dim = model.modulation_out.in_features
    tokens = torch.randn(setting.batch_size, side**2, dim, generator=torch.Generator().manual_seed(0))
    return tokens.to(device, model.dtype), (side, side)


def train_step(model: nn.Module, inputs: tuple, dtype: torch.dtype, checkpointing: bool = False) -> None:
    """Forward and backward pass; the gradients stay until the next one."""
    model.zero_grad(set_to_none=True)
    module = getattr(model, "_orig_mod", model)
    module.gradient_checkpointing = checkpointing
    with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
        loss = model(*inputs).sample.float().square().mean()
    loss.backward()
    module.gradient_checkpointing = False


def make_calls(
    models: Mapping[str, SiTTransformer2DModel],
    setting: Setting,
    options: Options,
    device: torch.device,
    vae: nn.Module | None = None,
) -> tuple[dict[str, Callable], dict[str, str]]:
    """What is timed in turn, by name, and which of it each is compared with. Without a VAE, one of random weights."""
    first = next(iter(models))
    baselines = dict.fromkeys(models, first)
    if setting.measurement == "operator":
        return {
            name: partial(compiled(model.blocks[0].mixer, options), *operator_inputs(model, setting, device))
            for name, model in models.items()
        }, baselines

    nets = {name: compiled(model, options) for name, model in models.items()}
    inputs = make_inputs(models[first], setting.image_size, setting.batch_size, device)
    if setting.measurement == "forward":
        return {name: partial(net, *inputs) for name, net in nets.items()}, baselines
    if setting.measurement == "training":
        return {name: partial(train_step, net, inputs, DTYPES[setting.dtype]) for name, net in nets.items()}, baselines
    if setting.measurement == "checkpointing":
        calls, baselines = {}, {}
        for name, net in nets.items():
            models[name].enable_gradient_checkpointing()
            for suffix, checkpointing in ("", False), (", checkpointing", True):
                calls[name + suffix] = partial(train_step, net, inputs, DTYPES[setting.dtype], checkpointing)
                baselines[name + suffix] = name
        return calls, baselines

    latents, _, labels = inputs
    latents = latents.float()
    if setting.measurement == "sde":
        calls, baselines = {}, {}
        for name, net in nets.items():

            def twice(x, t, model_fn):
                model_fn(x, t)
                return model_fn(x, t)

            once = GuidedModel(net, labels)
            for suffix, model_fn in (", 2 calls a step", partial(twice, model_fn=once)), ("", once):
                generator = torch.Generator(device).manual_seed(0)
                solve = InterpolantSDEScheduler().solve
                calls[name + suffix] = partial(solve, model_fn, latents, options.sde_steps, generator)
                baselines[name + suffix] = f"{name}, 2 calls a step"
        return calls, baselines

    vae = vae or AutoencoderKL(**VAE_CONFIG)
    vae = nn.Module.to(vae, device, DTYPES[setting.dtype]).eval()
    calls = {}
    for name, net in nets.items():
        pipeline = SiTPipeline(net, InterpolantODEScheduler(solver="midpoint"), vae)
        pipeline.set_progress_bar_config(disable=True)
        size = dict(height=setting.image_size, width=setting.image_size)
        calls[name] = partial(
            pipeline, labels, num_inference_steps=options.steps, latents=latents, output_type="pt", **size
        )
    return {**calls, VAE_ROW: partial(decode, vae, latents)}, {**baselines, VAE_ROW: VAE_ROW}


def measure_setting(
    models: Mapping[str, SiTTransformer2DModel],
    setting: Setting,
    options: Options,
    device: torch.device,
    rates: tuple[float, float],
    vae: nn.Module | None = None,
) -> tuple[list[dict], bool]:
    """Measure every model in one setting.

    Args:
        models: by preset, as `build_models` makes them.
        setting, options: what to measure, and how.
        device: where the models are.
        rates: floating-point operations and bytes per second that the device is capable of.
        vae: of "sampling"; one of random weights where None.

    Returns:
        One row of results each, and whether Ctrl-C came in between: then they are of the rounds that were finished, and
        empty where there was none.
    """
    if options.compile != "none":
        torch.compiler.reset()  # so that each setting is compiled for its own shapes
    calls, baselines = make_calls(models, setting, options, device, vae)
    facts = {name: model_facts(model, setting, device, rates) for name, model in models.items()}
    times, memory, profiles, interrupted = {}, {}, {}, False
    try:
        with torch.inference_mode(setting.measurement not in TRAINING):
            measure(calls, options.repeats, options.warmup, device, options.max_seconds, times)
            for name, call in calls.items():
                drop_gradients(models)
                # What CUDA graphs use is set aside for good, and would be counted as nothing.
                memory[name] = None if options.cuda_graphs else peak_memory(call, device)
                if setting.measurement in PROFILED:
                    profiles[name] = time_by_operation(call, device)
    except KeyboardInterrupt:
        interrupted = True
    with uninterrupted():
        drop_gradients(models)
        rows = []
        for name, summary in summarize(times, baselines).items():
            ms = summary["ms"][1]
            row = asdict(setting) | {"name": name, "peak_bytes": memory.get(name), **summary}
            row["images_per_second"] = setting.batch_size * 1e3 / ms
            del row["presets"]
            row |= facts.get(name.partition(",")[0], {})
            if "roofline_ms" in row:
                row["roofline_share"] = row["roofline_ms"] / ms
            if name in profiles:
                row["operations"] = profiles[name]
            if setting.measurement == "sampling" and name in models:
                row["vae_share"] = quartiles(times[VAE_ROW])[1] / ms
            rows.append(row)
    return rows, interrupted


def model_facts(
    model: SiTTransformer2DModel, setting: Setting, device: torch.device, rates: tuple[float, float]
) -> dict:
    """What is known of a model in a setting before anything is timed: parameters, attention, operations."""
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": attention_backend(model, setting, device),
    }
    if setting.measurement in COUNTED:
        if setting.measurement == "operator":
            operations = count_operations(model.blocks[0].mixer, *operator_inputs(model, setting, device))
        else:
            inputs = make_inputs(model, setting.image_size, setting.batch_size, device)
            training = setting.measurement == "training"
            operations = count_operations(model, *inputs, backward=training, dtype=DTYPES[setting.dtype])
        facts["macs_per_image"] = sum(flops for flops, _ in operations) // 2 // setting.batch_size
        facts["roofline_ms"] = roofline_ms(operations, *rates)
    return facts


@contextmanager
def uninterrupted():
    """Ctrl-C takes effect when the block is done: measured rows get into the report, and files are written whole."""
    pressed = []
    handler = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def load_fitting_vae(name: str) -> nn.Module:
    """Load a VAE for `sampling`.

    Raises:
        ValueError: where there is none, or its latents are not those of the presets.
    """
    vae = load_vae(name)
    made = (vae_scale_factor(vae), vae.config.latent_channels)
    if made != (PIXELS_PER_LATENT, VAE_CONFIG["latent_channels"]):
        raise ValueError(
            f"vae={name!r} has {made[0]} pixels a latent and {made[1]} channels; the presets need {PIXELS_PER_LATENT} "
            f"and {VAE_CONFIG['latent_channels']}, as stabilityai/sd-vae-ft-ema has"
        )
    return vae


def drop_gradients(models: Mapping[str, nn.Module]) -> None:
    """Free what a training step left."""
    for model in models.values():
        model.zero_grad(set_to_none=True)


def without_memory(setting: Setting) -> dict:
    """The row of a setting in which the device had not enough memory for its models one after the other."""
    row = asdict(setting) | {"name": ", ".join(setting.presets), "error": "out of memory"}
    del row["presets"]
    return row


def markdown_table(results: list[dict]) -> str:
    """The results as a Markdown table; in brackets, the quartiles."""
    header = ["measurement", "model", "image px", "batch", "dtype", "GMACs/image", "ms [quartiles]"]
    header += ["rounds", "ratio to baseline", "images/s", "roofline", "peak beyond weights, MiB", "VAE"]
    rows = [header, ["---"] * 2 + ["---:"] * (len(header) - 2)]

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.0f} %"

    for r in results:
        setting = [r["measurement"], r["name"], r["image_size"], r["batch_size"], r["dtype"]]
        if "error" in r:
            rows.append([*setting, "", r["error"], *[""] * (len(header) - 7)])
            continue
        low, ms, high = (f"{value:.4g}" for value in r["ms"])
        ratio_low, ratio, ratio_high = (f"{value:.3f}" for value in r["ratio"])
        macs = r.get("macs_per_image")
        rows.append([*setting, "" if macs is None else f"{macs / 1e9:.2f}", f"{ms} [{low}–{high}]"])
        rows[-1] += [len(r["times_ms"])]
        rows[-1] += ["" if r["baseline"] == r["name"] else f"{ratio} [{ratio_low}–{ratio_high}]"]
        rows[-1] += [f"{r['images_per_second']:.4g}", share(r.get("roofline_share"))]
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.1f}"
        rows[-1] += [peak, share(r.get("vae_share"))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def profile_table(results: list[dict]) -> str:
    """Where a pass spends its time, for the smallest and the largest image of each measurement: a Markdown table."""
    profiled = [r for r in results if "operations" in r]
    sizes = {}
    for r in profiled:
        sizes.setdefault(r["measurement"], set()).add(r["image_size"])
    lines = ["| measurement | model | image px | share of the time by operation |", "| --- | --- | ---: | --- |"]
    for r in profiled:
        if r["image_size"] in (min(sizes[r["measurement"]]), max(sizes[r["measurement"]])):
            shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in r["operations"].items())
            lines.append(f"| {r['measurement']} | {r['name']} | {r['image_size']} | {shares} |")
    return "\n".join(lines)


def plot(results: list[dict]) -> Figure | None:
    """Forward latency against resolution, and its ratio to the baseline; None where fewer than two sizes are measured.

    Of several groups of models, batch sizes and dtypes, the one with the most resolutions is drawn.
    """
    groups = {}
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
    for name in dict.fromkeys(row["name"] for row in rows):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["image_size"])
        x = [row["image_size"] for row in own]
        latency_axes.plot(x, [row["ms"][1] for row in own], marker="o", label=name)
        low, ratio, high = zip(*(row["ratio"] for row in own), strict=True)
        ratio_axes.plot(x, ratio, marker="o", label=name)
        ratio_axes.fill_between(x, low, high, alpha=0.2)
    latency_axes.set(yscale="log", ylabel="forward pass, ms", title=f"batch {batch_size}, {dtype}")
    ratio_axes.set(ylabel=f"time / {baseline}", ylim=(0, None), title="ratio, with quartiles")
    for axes in (latency_axes, ratio_axes):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("image side, px")
        axes.grid(alpha=0.3)
    latency_axes.legend()
    return figure


def attention_backend(model: SiTTransformer2DModel, setting: Setting, device: torch.device) -> str | None:
    """The implementation that PyTorch picks for this model's self-attention, such as FLASH_ATTENTION; None without."""
    heads = next((block.mixer.num_heads for block in model.blocks if isinstance(block.mixer, SelfAttention)), None)
    if heads is None:
        return None
    tokens = (setting.image_size // PIXELS_PER_LATENT // model.config.patch_size) ** 2
    shape = (setting.batch_size, tokens, 3, heads, model.config.attention_head_dim)
    training = setting.measurement in TRAINING
    qkv = torch.empty(shape, dtype=DTYPES[setting.dtype], device=device, requires_grad=training)
    with torch.set_grad_enabled(training):
        return SDPBackend(torch._fused_sdp_choice(*qkv.permute(2, 0, 3, 1, 4))).name


def environment(device: torch.device) -> dict:
    """What else a time depends on."""
    triton = importlib.util.find_spec("triton") and importlib.import_module("triton")
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 if device.type == "cuda" else None,
        "onednn_products": device.type == "cpu" and HAS_ONEDNN_PRODUCT and torch.backends.mkldnn.enabled,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "triton": triton.__version__ if triton else None,
        "diffusers": diffusers.__version__,
        "sit_atconv": sit_atconv.__version__,
        "git_commit": git_commit(),
    }


def write_results(folder: Path, report: dict) -> None:
    """Write JSON, table and plot so that each file is whole at any moment."""
    write_json(folder / "latency.json", report)
    with staged(folder / "latency.md") as part:
        part.write_text(report_text(report), encoding="utf-8")
    figure = plot(report["results"])
    if figure is not None:
        with staged(folder / "latency.png") as part:
            figure.savefig(part, dpi=120, format="png")


def report_text(report: dict) -> str:
    """The table, headed by how it was made."""
    facts, rates = report["environment"], report["rates"]
    attention = sorted({row["attention"] for row in report["results"] if row.get("attention")})
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['date'][:10]}, {facts['device_name']}, {facts['threads']} threads, torch {facts['torch']}, compile "
        f"{report['options']['compile']}, attention {', '.join(attention) or 'none'}, "
        f"commit {facts['git_commit'] or 'unknown'}; measured limits by dtype: "
        + "; ".join(f"{name} {flops / 1e9:.3g} GFLOP/s" for name, flops in rates["flops_per_second"].items())
        + f"; copying {rates['bytes_per_second'] / 1e9:.3g} GB/s",
        "",
        markdown_table(report["results"]),
    ]
    if any("operations" in row for row in report["results"]):
        lines += ["", "By PyTorch's profiler:", "", profile_table(report["results"])]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 130 after an interrupt, which keeps every finished round."""
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser(prog="latency.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_class_arguments(Options)
    arguments = parser.parse_args(argv)
    try:
        options = Options(**vars(arguments))
        vae = None if options.vae is None else load_fitting_vae(options.vae)
    except ValueError as error:
        parser.error(str(error))

    now = datetime.now(timezone.utc)
    folder = Path(options.output or f"runs/latency-{now:%Y%m%d-%H%M%S}")
    report = {
        "command": shlex.join(["python", "eval/latency.py", *argv]),
        "date": now.isoformat(timespec="seconds"),
        "options": asdict(options),
        "interrupted": True,  # until all is measured; the files are written after every setting
        "results": [],
    }
    try:
        measure_plan(options, folder, report, vae)
    except KeyboardInterrupt:
        if report["interrupted"]:
            what = "only what follows" if report["results"] else "nothing"
            print(f"interrupted: {what} was measured", file=sys.stderr)
    if report["results"]:
        print(markdown_table(report["results"]))
        print(f"\nIn {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return INTERRUPTED if report["interrupted"] else 0


def measure_plan(options: Options, folder: Path, report: dict, vae: nn.Module | None) -> None:
    """Measure all settings, and after each one write `report`, which gets its rows, to `folder`."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device, plan = torch.device(options.device), options.plan
    dtypes = dict.fromkeys(setting.dtype for setting in plan)
    report["environment"] = environment(device)
    rates = report["rates"] = {
        "flops_per_second": {name: matrix_rate(DTYPES[name], device) for name in dtypes},
        "bytes_per_second": copy_bandwidth(device),
    }
    models, built = {}, None
    for i, setting in enumerate(tqdm(plan, desc="settings", disable=None)):
        limits = (rates["flops_per_second"][setting.dtype], rates["bytes_per_second"])
        weights = "float32" if setting.measurement in TRAINING else setting.dtype
        try:
            if built != (setting.presets, weights):
                models, built = {}, None  # two groups of large models may not fit together
                models = build_models(setting.presets, DTYPES[weights], device)
                built = (setting.presets, weights)
            rows, interrupted = measure_setting(models, setting, options, device, limits, vae)
        except torch.OutOfMemoryError:  # the settings to come may fit
            rows, interrupted = [without_memory(setting)], False
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


if __name__ == "__main__":
    sys.exit(main())
