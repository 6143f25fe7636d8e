"""What the benchmarks measure: single settings, the plans for a CPU and for a GPU, and the options of a user."""

import itertools
from dataclasses import dataclass
from math import isqrt

from ..models.presets import MIXERS, PRESETS
from ..utils.checks import check_choice, check_count, check_positive
from ..utils.files import check_new_file

MEASUREMENTS = ("operator", "forward", "training", "checkpointing", "meanflow", "sampling", "sde")
WITH_GRADIENTS = ("training", "checkpointing", "meanflow")
WITH_ROOFLINE = ("operator", "forward", "training")  # measurements whose operations are counted
WITH_PROFILE = (*WITH_ROOFLINE, "sampling")
DTYPES = ("float32", "bfloat16", "float16")  # names of torch
DEVICES = ("auto", "cpu", "cuda")
COMPILE = ("none", "blocks", "whole")
CLOCK_NAMES = ("wall", "cpu")  # of timing.CLOCKS
PIXELS_PER_LATENT = 8  # side of the image in pixels / side of its latents, as Stable Diffusion's VAE has it


@dataclass(frozen=True)
class Setting:
    """One measurement of a group of models that take turns.

    Args:
        measurement: one of `MEASUREMENTS`.
        presets: the models by their published names; the first is the baseline.
        image_size: side of the square images, in pixels.
        batch_size: images in one call.
        dtype: one of `DTYPES`.
    """

    measurement: str
    presets: tuple[str, ...]
    image_size: int
    batch_size: int
    dtype: str
    cuda_graphs: bool = False

    def check(self) -> None:
        """Raise ValueError naming the field and the value that cannot be measured."""
        check_choice("measurement", self.measurement, MEASUREMENTS)
        check_choice("dtype", self.dtype, DTYPES)
        check_count("batch_size", self.batch_size)
        check_count("image_size", self.image_size)
        for preset in self.presets:
            check_choice("preset", preset, PRESETS)
            multiple = PIXELS_PER_LATENT * int(PRESETS[preset]["patch_size"])
            if self.image_size % multiple:
                raise ValueError(
                    f"image_size={self.image_size} is not divisible by {multiple}, 8 × patch size of {preset}"
                )
            if self.measurement == "operator" and PRESETS[preset]["mixer"] not in MIXERS:
                raise ValueError(f"preset={preset!r} has two operators; measure those of the other presets")

    @property
    def step_conditioning(self) -> str:
        """How the models know the end of a step, see `SiTTransformer2DModel`."""
        return "span" if self.measurement == "meanflow" else "none"

    @property
    def latent_size(self) -> int:
        """Side of the latents that the network sees."""
        return self.image_size // PIXELS_PER_LATENT


def check_shape(shape: list[int]) -> None:
    """Raise ValueError unless `shape` is (B, N, C) with N a square and C a multiple of a head's width."""
    if len(shape) != 3 or min(shape) < 1 or isqrt(shape[1]) ** 2 != shape[1]:
        raise ValueError(f"shape={shape} must be [B, N, C], all positive and N a square, such as [1, 256, 1152]")
    if shape[2] % 64 and shape[2] % 72:
        raise ValueError(f"shape={shape}: C={shape[2]} must be a multiple of 64 or 72, the widths of a head")


def family(size: str) -> tuple[str, ...]:
    """The presets of one size: self-attention, ATConv, and the mixtures."""
    return f"SiT-{size}", f"SiT-ATConv-{size}", f"SiT-ATConv-{size}-Hybrid", f"SiT-ATConv-{size}-Pooled"


# In order of value: what comes last is what a limit of time leaves out.
PLANS = {
    "cpu": [
        Setting("operator", family("XL/2")[:2], 256, 1, "float32"),
        Setting("forward", family("XL/2"), 256, 1, "float32"),
        *(Setting("forward", family("S/2"), size, 1, "float32") for size in (256, 512, 1024, 2048)),
        *(Setting("training", family("S/2"), size, 4, "float32") for size in (256, 512)),
        Setting("checkpointing", family("S/2")[:2], 256, 4, "float32"),
        *(Setting("meanflow", family("S/2")[:2], size, 4, "float32") for size in (256, 512)),
        Setting("sampling", family("S/2"), 256, 1, "float32"),
        Setting("sde", family("S/2")[1:2], 128, 1, "float32"),
    ],
    "cuda": [
        *(Setting("forward", family("XL/2"), size, 32, "bfloat16") for size in (256, 512, 1024)),
        *(Setting("operator", family("XL/2")[:2], size, 32, "bfloat16") for size in (256, 512, 1024)),
        *(Setting("training", family("XL/2"), size, 32, "bfloat16") for size in (256, 512)),
        *(Setting("forward", family("XL/2"), size, 1, "bfloat16", cuda_graphs=True) for size in (256, 512, 1024, 2048)),
        Setting("sampling", family("XL/2"), 256, 8, "bfloat16"),
        Setting("checkpointing", family("XL/2")[:2], 256, 32, "bfloat16"),
        *(Setting("meanflow", family("XL/2")[:2], size, n, "bfloat16") for size, n in ((256, 32), (512, 8), (1024, 4))),
        Setting("sde", family("S/2")[1:2], 256, 8, "bfloat16"),
    ],
}


@dataclass
class LatencyOptions:
    """What to measure and how.

    The first five options form a plan of all their combinations. If none of them is given, the built-in plan for the
    device is measured.

    Args:
        measurements: any of operator, forward, training, checkpointing, meanflow, sampling, sde.
        presets: models by their published names, each once. The first is the baseline of the ratios.
        image_sizes: sides of the square images in pixels: multiples of 8 × patch size.
        batch_sizes: numbers of images in one call.
        dtypes: data types of weights and latents: float32, bfloat16 or float16.
        device: cpu, cuda, or auto, which is CUDA if there is a GPU.
        compile: none, blocks (torch.compile of the repeated block, which takes a fraction of the time), or whole
            (torch.compile of the model without graph breaks). If null, blocks on CUDA and none on a CPU.
        cuda_graphs: compile in PyTorch's "reduce-overhead" mode, as the built-in plan does for single images.
        minutes: stop when this time is over, and keep what was measured. The built-in plans measure in order of value,
            and no setting takes more than twice its share of the time that is left. If null, 8 for the built-in plan on
            CUDA, otherwise there is no limit.
        warmup: number of rounds that run first and are not counted.
        repeats: number of rounds that are counted; each round runs every model once.
        max_seconds: time limit of each setting: once 3 rounds have been counted, no round starts after it.
        steps: solver steps of "sampling" with the midpoint method, which makes two network calls per step.
        sde_steps: solver steps of "sde".
        vae: the VAE of "sampling": a folder or a name on the Hub. If null, Stable Diffusion's architecture with random
            weights, which is as fast.
        threads: number of CPU threads within an operation. If null, PyTorch's choice.
        clock: wall, or cpu for the processor time of this process, where other programs share a machine without a GPU.
        output: folder for the results, which must not exist. If null, runs/latency-DATE-TIME.

    Raises:
        ValueError: if an option cannot be used; the message names the field, the value and the remedy.
    """

    measurements: list[str] | None = None
    presets: list[str] | None = None
    image_sizes: list[int] | None = None
    batch_sizes: list[int] | None = None
    dtypes: list[str] | None = None
    device: str = "auto"
    compile: str | None = None
    cuda_graphs: bool = False
    minutes: float | None = None
    warmup: int = 2
    repeats: int = 20
    max_seconds: float = 90.0
    steps: int = 10
    sde_steps: int = 250
    vae: str | None = None
    threads: int | None = None
    clock: str = "wall"
    output: str | None = None

    def __post_init__(self) -> None:
        self._check_values()
        import torch  # only now, since it takes seconds

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda', but PyTorch sees no GPU here; choose cpu or auto")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.compile is None:
            self.compile = "blocks" if self.device == "cuda" else "none"
        if self.cuda_graphs and (self.device == "cpu" or self.compile == "none"):
            raise ValueError("cuda_graphs=True needs --device cuda and --compile blocks or whole")
        if self.minutes is None and self.device == "cuda" and self.is_built_in:
            self.minutes = 8.0
        if self.clock == "cpu" and self.device == "cuda":
            raise ValueError("clock='cpu' does not see the time of a GPU; choose wall, or --device cpu")
        if self.vae is not None and not any(setting.measurement == "sampling" for setting in self.plan):
            raise ValueError(
                f"vae={self.vae!r} is for the measurement sampling, which is not planned; add it, or leave vae out"
            )

    def _check_values(self) -> None:
        check_choice("device", self.device, DEVICES)
        check_choice("clock", self.clock, CLOCK_NAMES)
        if self.compile is not None:
            check_choice("compile", self.compile, COMPILE)
        for name in ("warmup", "repeats", "steps", "sde_steps"):
            check_count(name, getattr(self, name))
        check_positive("max_seconds", self.max_seconds)
        if self.minutes is not None:
            check_positive("minutes", self.minutes)
        if self.threads is not None:
            check_count("threads", self.threads)
        for name in ("measurements", "presets", "image_sizes", "batch_sizes", "dtypes"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name}={values} must name at least one, and each only once")
        for setting in self.plan:
            setting.check()
        check_new_file("output", self.output)

    @property
    def is_built_in(self) -> bool:
        """Whether the plan is the one for the device, since none was named."""
        own = (self.measurements, self.presets, self.image_sizes, self.batch_sizes, self.dtypes)
        return all(values is None for values in own)

    @property
    def plan(self) -> list[Setting]:
        """The settings in the order in which they are measured."""
        if self.is_built_in:
            return PLANS["cpu" if self.device == "auto" else self.device]
        # A mixture has no single operator.
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
