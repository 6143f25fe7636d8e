"""The configuration of a training run."""

import importlib.util
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data import source_name
from ..flow.losses import TIME_SAMPLINGS, WEIGHTINGS
from ..models.transformer_sit import PRESETS, check_preset
from ..utils.checks import check_choice, check_count, check_positive
from .ema import profile_weights

DEFAULT_PRESET = "SiT-ATConv-Nano/2"
TRACKERS = ("tensorboard", "wandb", "trackio")


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
        init_from: fine-tune the transformer of this pipeline folder, whose architecture and VAE are taken over. Where
            the classes are others, their embedding starts anew; that of "no class" is kept.
        preset: model size, patch size and mixer by name, such as SiT-ATConv-S/2; SiT-ATConv-Nano/2 where none is given.
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
        max_grad_norm: gradients are clipped to this norm; null leaves them as they are. The norm is logged in any case.
        max_skipped_steps: a step whose loss or gradient is not finite is skipped; the run stops after this many in a
            row. fp16 skips some at its start, while it looks for its loss scale.
        ema_decay: of the moving average of the weights, or a list of several; the first one is saved and sampled.
        ema_stds: relative standard deviations of power-function averages (EDM2), such as [0.05, 0.1].
        ema_snapshot_every: updates between two snapshots of the power-function averages, kept in ema/.
        repa: a timm model whose features an early block learns to predict, such as vit_base_patch14_dinov2.lvd142m.
        repa_weights: of that model: pretrained, random or a file.
        repa_coefficient: of the alignment in the loss.
        repa_depth: the block that is aligned, counted from 1.
        mixed_precision: no, bf16 or fp16; as accelerate is set up where none is given.
        gradient_checkpointing: recompute activations to save memory.
        compile: torch.compile each block.
        seed: of everything random.
        output_dir: run folder; runs/DATA-MIXER where none is given.
        resume: latest continues the run in the output folder; auto does so, or starts one if there is none.
        dry_run: build everything, print the plan, do one step with one image a process, and write nothing.
        log_with: tensorboard, wandb, trackio or none, besides metrics.jsonl; tensorboard, if installed, where none is
            given.
        log_every: updates between two lines in metrics.jsonl.
        sample_every: updates between two sample grids.
        checkpoint_every: updates between two checkpoints.
        keep_checkpoints: newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this step are kept for good.
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

    init_from: str | None = None
    preset: str | None = None
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
    max_grad_norm: float | None = 1.0
    max_skipped_steps: int = 20
    ema_decay: float | list[float] = 0.995
    ema_stds: list[float] = field(default_factory=list)
    ema_snapshot_every: int = 10000
    repa: str | None = None
    repa_weights: str = "pretrained"
    repa_coefficient: float = 0.5
    repa_depth: int = 8
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0

    output_dir: str | None = None
    resume: Literal["latest", "auto"] | None = None
    dry_run: bool = False
    log_with: Literal["tensorboard", "wandb", "trackio", "none"] | None = None
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_every: int | None = None
    sample_guidance_scale: float = 1.0
    sample_steps: int = 25
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            ValueError: naming the field, its value and what it may be.
        """
        if self.init_from is not None:
            check_init_from(self)
        else:
            self.preset = self.preset or DEFAULT_PRESET
            check_preset(self.preset)
            self.mixer = self.mixer or PRESETS[self.preset]["mixer"]
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "sample_every"):
            check_count(name, getattr(self, name))
        for name in ("checkpoint_every", "keep_checkpoints", "sample_steps", "max_skipped_steps", "repa_depth"):
            check_count(name, getattr(self, name))
        check_count("ema_snapshot_every", self.ema_snapshot_every)
        if self.keep_every is not None:
            check_count("keep_every", self.keep_every)
        for name in ("learning_rate", "time_shift", "repa_coefficient"):
            check_positive(name, getattr(self, name))
        if self.max_grad_norm is not None:
            check_positive("max_grad_norm", self.max_grad_norm)
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
        profile_weights(self.ema_decays, self.ema_stds)
        if self.log_with in TRACKERS and importlib.util.find_spec(self.log_with) is None:
            raise ValueError(f"log_with={self.log_with} needs a package that is missing: pip install {self.log_with}")
        if self.output_dir is None:
            mixer = self.mixer if isinstance(self.mixer, str) else "finetuned" if self.init_from else "mixed"
            self.output_dir = f"runs/{source_name(self.data)}-{mixer}"

    @property
    def ema_decays(self) -> list[float]:
        """`ema_decay` as a list."""
        return self.ema_decay if isinstance(self.ema_decay, list) else [self.ema_decay]

    @property
    def trackers(self) -> list[str]:
        """What logs to besides metrics.jsonl."""
        if self.log_with is None:
            return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        return [] if self.log_with == "none" else [self.log_with]


def check_init_from(config: TrainConfig) -> None:
    """Raise ValueError unless `init_from` is a pipeline folder and nothing else says what the model looks like."""
    if not (Path(config.init_from) / "transformer" / "config.json").is_file():
        raise ValueError(f"init_from={config.init_from!r} is no pipeline folder: it has no transformer/config.json")
    if config.preset or config.mixer or config.model.keys() - {"class_dropout_prob"}:
        raise ValueError(
            f"init_from={config.init_from!r} decides what the model looks like; leave out preset={config.preset!r}, "
            f"mixer={config.mixer!r} and model={config.model}, but for class_dropout_prob"
        )
    scheduler = Path(config.init_from) / "scheduler" / "scheduler_config.json"
    trained = json.loads(scheduler.read_text()) if scheduler.is_file() else {}
    for name in ("path", "prediction"):
        if trained.get(name, getattr(config, name)) != getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)}: the model in init_from={config.init_from!r} was trained with "
                f"{trained[name]}; give --{name} {trained[name]}"
            )
    if config.vae is None and (Path(config.init_from) / "vae" / "config.json").is_file():
        config.vae = config.init_from
