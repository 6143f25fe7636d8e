"""The configuration of a training run, and the parts that the loop in train/train_sit.py puts together."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from .checkpoints import checkpoint_steps
from .data import ImageDataset, source_name
from .latents import vae_scale_factor
from .losses import TIME_SAMPLINGS, WEIGHTINGS
from .models.transformer_sit import PRESETS, SiTTransformer2DModel, check_preset
from .validation import check_choice, check_count, check_positive

# What may differ when a run is continued. Everything else would make it another run.
CHANGEABLE_ON_RESUME = {
    "resume",
    "output_dir",
    "max_steps",
    "num_workers",
    "max_broken_images",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_guidance_scale",
    "sample_steps",
    "push_to_hub",
}


@dataclass
class TrainConfig:
    """Train SiT on images. The defaults are the embedded recipe: handwritten digits, in about 5 minutes on 2 cores.

    Args:
        data: "digits", a folder of images (one sub-folder per class, or images alone without classes), hf:NAME, parquet
            files, tar shards, an LMDB, or a folder of latents; options follow as "?name=value". See docs/data.md.
        image_size: side of the training images in pixels; needed for all data but digits and latents.
        horizontal_flip: mirror half of the images.
        num_workers: processes that read images and draw noise.
        max_broken_images: images that cannot be read are skipped and listed; with more of them the run stops.
        vae: an AutoencoderKL or AutoencoderTiny, as a folder or a name on the Hub; none trains on pixels.
        preset: model size, patch size and mixer by name, such as SiT-ATConv-S/2.
        mixer: "atconv", "attention", "hybrid" or a list with one mixer per block, in place of the preset's.
        model: further arguments of SiTTransformer2DModel, such as --model.class_dropout_prob 0.2.
        path: interpolant: linear, gvp or vp.
        prediction: what the network predicts: velocity, score, noise or data.
        weighting: of the loss over time: none, velocity or likelihood.
        time_sampling: of the training times: uniform or logit-normal.
        time_shift: move the training times towards noise by this factor of odds.
        max_steps: optimizer updates in all.
        batch_size: images per update, over all processes and accumulation steps.
        gradient_accumulation_steps: parts in which a process works through its share of the batch.
        learning_rate: of AdamW, after the warm-up.
        lr_warmup_steps: updates over which the learning rate grows from 0.
        lr_schedule: constant, or cosine down to 0 at max_steps.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: of the moving average of the weights; it is the average that is saved and sampled.
        mixed_precision: no, bf16 or fp16; as accelerate is set up where none is given.
        gradient_checkpointing: recompute activations to save memory.
        seed: of everything random.
        output_dir: run folder; runs/DATA-MIXER where none is given.
        resume: latest continues the run in the output folder; auto does so, or starts one if there is none.
        log_every: updates between two lines in metrics.jsonl.
        sample_every: updates between two sample grids.
        checkpoint_every: updates between two checkpoints.
        keep_checkpoints: checkpoints that are kept.
        sample_guidance_scale: classifier-free guidance of the sample grids.
        sample_steps: solver steps of the sample grids.
        push_to_hub: USER/NAME on the Hugging Face Hub, to which the finished pipeline is uploaded.
    """

    data: str = "digits"
    image_size: int | None = None
    horizontal_flip: bool = False
    num_workers: int = 0
    max_broken_images: int = 10
    vae: str | None = None

    preset: str = "SiT-ATConv-Nano/2"
    mixer: str | list[str] | None = None
    model: dict[str, Any] = field(default_factory=dict)

    path: Literal["linear", "gvp", "vp"] = "linear"
    prediction: Literal["velocity", "score", "noise", "data"] = "velocity"
    weighting: str = "none"
    time_sampling: str = "uniform"
    time_shift: float = 1.0

    max_steps: int = 1600
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    lr_warmup_steps: int = 100
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.995
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    output_dir: str | None = None
    resume: Literal["latest", "auto"] | None = None
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    sample_guidance_scale: float = 1.0
    sample_steps: int = 25
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            ValueError: naming the field, its value and what it may be.
        """
        check_preset(self.preset)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "sample_every"):
            check_count(name, getattr(self, name))
        for name in ("checkpoint_every", "keep_checkpoints", "sample_steps"):
            check_count(name, getattr(self, name))
        for name in ("learning_rate", "max_grad_norm", "time_shift"):
            check_positive(name, getattr(self, name))
        numbers = (
            "num_workers",
            "max_broken_images",
            "seed",
            "lr_warmup_steps",
            "weight_decay",
            "sample_guidance_scale",
        )
        for name in numbers:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number of at least 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1)")
        if self.mixer is None:
            self.mixer = PRESETS[self.preset]["mixer"]
        if self.output_dir is None:
            self.output_dir = f"runs/{source_name(self.data)}-{self.mixer if isinstance(self.mixer, str) else 'mixed'}"


def prepare_run_folder(config: TrainConfig) -> Path | None:
    """Make sure that the output folder is free, or holds the run to continue; return the checkpoint to start from.

    Raises:
        ValueError: where the folder holds something else, there is nothing to resume, or the configs differ.
    """
    folder = Path(config.output_dir)
    checkpoints = checkpoint_steps(folder / "checkpoints")
    if config.resume == "latest" and not checkpoints:
        raise ValueError(f"resume=latest: {folder}/checkpoints holds no checkpoint; leave --resume out to start a run")
    starts_over = config.resume == "auto" and not checkpoints and not _changes(config, folder)
    if config.resume is None or not checkpoints:
        if not starts_over and folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"output_dir={str(folder)!r} holds another run; choose another --output_dir, or continue that run with "
                "--resume latest"
            )
        return None
    if changed := _changes(config, folder):
        raise ValueError(f"resume={config.resume}: this is another run than the one in {folder}: {'; '.join(changed)}")
    if checkpoints[-1][0] > config.max_steps:  # at max_steps all that is left is to write the pipeline
        raise ValueError(
            f"resume={config.resume}: the run in {folder} has done {checkpoints[-1][0]} steps; raise --max_steps"
        )
    return checkpoints[-1][1]


def _changes(config: TrainConfig, folder: Path) -> list[str]:
    """What sets this run apart from the one in `folder`."""
    try:
        saved = yaml.safe_load((folder / "config.yaml").read_text())
    except FileNotFoundError:
        return [f"{folder} holds no config.yaml"]
    return [
        f"{name}: {saved.get(name)!r} -> {value!r}"
        for name, value in dataclasses.asdict(config).items()
        if name not in CHANGEABLE_ON_RESUME and saved.get(name) != value
    ]


def save_config(config: TrainConfig) -> None:
    """Write the resolved configuration to config.yaml in the run folder."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def build_transformer(config: TrainConfig, dataset: ImageDataset, vae: torch.nn.Module | None) -> SiTTransformer2DModel:
    """The freshly initialised model for this data, a function of the config alone.

    Raises:
        ValueError: where image size, VAE factor and patch size do not fit, channels differ, or an argument is unknown.
    """
    factor = vae_scale_factor(vae)
    patch_size = config.model.get("patch_size", PRESETS[config.preset]["patch_size"])
    if dataset.image_size % (factor * patch_size):
        raise ValueError(
            f"image_size={dataset.image_size} must be divisible by {factor * patch_size} "
            f"(VAE factor {factor} × patch size {patch_size})"
        )
    if vae is not None and vae.config.in_channels != dataset.channels:
        raise ValueError(
            f"vae={config.vae!r} takes {vae.config.in_channels} channels, the images of data={config.data!r} have "
            f"{dataset.channels}"
        )
    arguments = {
        "sample_size": dataset.image_size // factor,
        "in_channels": dataset.channels if vae is None else vae.config.latent_channels,
        "num_classes": dataset.num_classes,
        "mixer": config.mixer,
    }
    if fixed := sorted({*arguments, "out_channels"} & config.model.keys()):
        raise ValueError(f"model: {', '.join(fixed)} follow from --data, --vae and --mixer; leave them out")
    if not dataset.classes:
        arguments["class_dropout_prob"] = 0.0  # there is nothing to drop
    arguments |= config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return SiTTransformer2DModel.from_preset(config.preset, **arguments)
        except TypeError as error:
            reason = str(error).replace("SiTTransformer2DModel.__init__() ", "")
            raise ValueError(f"model={config.model}: {reason}") from error


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    if config.lr_schedule == "constant":
        return config.learning_rate * warmup
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
