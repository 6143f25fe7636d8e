"""Measure how long one forward pass of SiT takes with self-attention, with ATConv, and with both.

    python eval/latency.py
    python eval/latency.py --presets '[SiT-XL/2, SiT-ATConv-XL/2, SiT-ATConv-XL/2-Hybrid]' \
        --image_sizes '[256, 512]' --batch_sizes '[1, 8]' --dtype bfloat16 --compile true --output results

All models take turns within every repeat, so that a slow or fast phase of the machine meets them alike, and the ratio
to the first preset is taken within each repeat before its median. Prints a Markdown table; with `--output`, writes
every single time too.

Image sizes are in pixels; the network sees latents of an eighth of them. Times are wall-clock milliseconds of one call,
from its launch until the device is done.
"""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import diffusers
import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import nn
from tqdm import tqdm

import sit_atconv
from sit_atconv import SiTTransformer2DModel
from sit_atconv.macs import count_macs
from sit_atconv.models.transformer_sit import PRESETS
from sit_atconv.validation import check_choice, check_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")
PIXELS_PER_LATENT = 8  # of the VAE, on each side
INTERRUPTED = 130  # exit status, as shells have it


@dataclass
class Options:
    """What to measure, and how.

    Args:
        presets: models by their published names, each once. The first is the baseline of the ratios.
        image_sizes: sides of the square images, in pixels: multiples of 8 × patch size.
        batch_sizes: images in one forward pass.
        dtype: of weights and latents: float32, bfloat16 or float16.
        device: cpu, cuda, or auto: CUDA where there is a GPU.
        compile: pass the models through torch.compile, anew for each image size and batch size.
        warmup: rounds that run first and are not counted.
        repeats: rounds that are counted; each runs every model once.
        threads: CPU threads within an operation; PyTorch's choice where null.
        output: a .json file, or a folder for latency.json; it must not exist yet. Nothing is written where null.

    Raises:
        ValueError: naming the field, the value and what it may be.
    """

    presets: list[str] = field(default_factory=lambda: ["SiT-S/2", "SiT-ATConv-S/2"])
    image_sizes: list[int] = field(default_factory=lambda: [256])
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    dtype: str = "float32"
    device: str = "auto"
    compile: bool = False
    warmup: int = 3
    repeats: int = 20
    threads: int | None = None
    output: str | None = None

    def __post_init__(self):
        for name in ("presets", "image_sizes", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must name at least one, and each only once")
        for preset in self.presets:
            check_choice("preset", preset, PRESETS)
        for size in self.image_sizes:
            check_count("image_size", size)
            for preset in self.presets:
                multiple = PIXELS_PER_LATENT * PRESETS[preset]["patch_size"]
                if size % multiple:
                    raise ValueError(f"image_size={size} is not divisible by {multiple}, 8 × patch size of {preset}")
        for batch_size in self.batch_sizes:
            check_count("batch_size", batch_size)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda', but PyTorch sees no GPU here; choose cpu or auto")
        check_count("warmup", self.warmup)
        check_count("repeats", self.repeats)
        if self.threads is not None:
            check_count("threads", self.threads)
        if self.output_file is not None and self.output_file.exists():
            raise ValueError(f"output={self.output!r}: {self.output_file} exists already; remove it or name another")

    @property
    def output_file(self) -> Path | None:
        if self.output is None:
            return None
        path = Path(self.output)
        return path if path.suffix == ".json" else path / "latency.json"


def turns(names: list[str], repeat: int) -> list[str]:
    """The order of one repeat: rotated by one each time, and read backwards in every other full rotation.

    Over 2·len(names) repeats every name takes every place twice, and follows each neighbour as often as it leads it.
    """
    first = repeat % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if (repeat // len(names)) % 2 else order


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    models: Mapping[str, nn.Module | Callable],
    inputs: tuple,
    repeats: int,
    warmup: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Time `model(*inputs)` for each model in turn, again and again. Gradient mode is the caller's.

    Args:
        models: by name; anything that can be called.
        inputs: positional arguments, the same for every model.
        repeats: times per model; within a repeat, in the order of `turns`.
        warmup: rounds before that, not counted.
        device: on which the models run.

    Returns:
        Milliseconds by model: (repeats,) each, so that entry i of all models is from the same repeat.
    """
    times = {name: [] for name in models}
    for repeat in tqdm(range(-warmup, repeats), desc="rounds", leave=False, disable=None):
        for name in turns(list(models), repeat):
            synchronize(device)
            start = time.perf_counter()
            models[name](*inputs)
            synchronize(device)
            elapsed = time.perf_counter() - start
            if repeat >= 0:
                times[name].append(elapsed * 1e3)
    return times


def build_models(presets: list[str], dtype: torch.dtype, device: torch.device) -> dict[str, SiTTransformer2DModel]:
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


def quartiles(values: list[float] | np.ndarray) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def summarize(times: dict[str, list[float]], batch_size: int) -> dict[str, dict]:
    """Quartiles per model of the times of `measure`, and of their ratios to the first model's in the same repeat."""
    baseline = np.array(next(iter(times.values())))
    return {
        name: {
            "ms": quartiles(values),
            "ratio": quartiles(np.array(values) / baseline),
            "images_per_second": batch_size * 1e3 / float(np.median(values)),
            "times_ms": values,
        }
        for name, values in times.items()
    }


def measure_setting(
    models: dict[str, SiTTransformer2DModel],
    image_size: int,
    batch_size: int,
    options: Options,
    device: torch.device,
) -> list[dict]:
    """Measure every model at one image size and batch size: one row of results each."""
    inputs = make_inputs(next(iter(models.values())), image_size, batch_size, device)
    callables = models
    if options.compile:
        # Anew each time, for this very shape. fullgraph: a model that cannot be compiled fails, and is not measured
        # uncompiled under that name.
        torch.compiler.reset()
        callables = {name: torch.compile(m, dynamic=False, fullgraph=True) for name, m in models.items()}
    with torch.inference_mode():
        times = measure(callables, inputs, options.repeats, options.warmup, device)
    side = image_size // PIXELS_PER_LATENT
    return [
        {
            "preset": name,
            "image_size": image_size,
            "batch_size": batch_size,
            "dtype": options.dtype,
            "parameters": sum(parameter.numel() for parameter in models[name].parameters()),
            "macs_per_image": count_macs(models[name], side, side),
            **summary,
        }
        for name, summary in summarize(times, batch_size).items()
    ]


def markdown_table(results: list[dict], baseline: str) -> str:
    """The results as a Markdown table; in brackets, the quartiles."""
    header = f"preset|image px|batch|dtype|params M|GMACs/image|ms [quartiles]|time / {baseline}|images/s".split("|")
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for r in results:
        low, ms, high = (f"{value:.4g}" for value in r["ms"])
        ratio_low, ratio, ratio_high = (f"{value:.3f}" for value in r["ratio"])
        rows.append([r["preset"], r["image_size"], r["batch_size"], r["dtype"], f"{r['parameters'] / 1e6:.2f}"])
        rows[-1] += [f"{r['macs_per_image'] / 1e9:.2f}", f"{ms} [{low}–{high}]"]
        rows[-1] += [f"{ratio} [{ratio_low}–{ratio_high}]", f"{r['images_per_second']:.4g}"]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict:
    """What else a time depends on."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "diffusers": diffusers.__version__,
        "sit_atconv": sit_atconv.__version__,
    }


def write_json(path: Path, report: dict) -> None:
    """Write so that the file is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".part")
    staged.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    staged.replace(path)


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 130 after an interrupt, which keeps the finished settings."""
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser(prog="latency.py", description=__doc__.partition("\n")[0])
    parser.add_class_arguments(Options)
    arguments = parser.parse_args(argv)
    try:
        options = Options(**vars(arguments))
    except ValueError as error:
        parser.error(str(error))

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    report = {
        "command": shlex.join([Path(__file__).name, *argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": asdict(options),
        "environment": environment(device),
        "baseline": options.presets[0],
        "interrupted": True,  # until all is measured; the file is written after every setting
        "results": [],
    }
    status = 0
    try:
        models = build_models(options.presets, DTYPES[options.dtype], device)
        settings = [(size, batch_size) for size in options.image_sizes for batch_size in options.batch_sizes]
        for image_size, batch_size in tqdm(settings, desc="settings", disable=None):
            report["results"] += measure_setting(models, image_size, batch_size, options, device)
            report["interrupted"] = len(report["results"]) < len(settings) * len(models)
            if options.output_file is not None:
                write_json(options.output_file, report)
    except KeyboardInterrupt:
        print("interrupted: only what follows was measured", file=sys.stderr)
        status = INTERRUPTED
    print(markdown_table(report["results"], report["baseline"]))
    return status


if __name__ == "__main__":
    sys.exit(main())
