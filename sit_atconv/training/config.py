"""The configuration of a training run, grouped as in --help.

Constructing a `TrainConfig` reads nothing from the disk and imports nothing that takes long: mistakes in the options
are answered at once, and the config.yaml of any run can be opened on any machine. Whatever depends on files and
installed packages is checked and filled in by `resolve_config` (stored_config.py), before a run starts.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..models.presets import MIXER_NAMES, PRESETS, check_preset
from ..utils.checks import (
    MAX_SOLVER_STEPS,
    MAX_WORKERS,
    check_choice,
    check_count,
    check_float32,
    check_given,
    check_non_negative,
)
from ..utils.source_names import source_name
from .adapter_options import AdapterConfig, check_adapter
from .ema_profiles import profile_weights
from .mean_flow_options import STEP_ARGUMENTS, MeanFlowConfig, check_mean_flow
from .model_arguments import check_model
from .objective_options import ObjectiveConfig, check_objective_options
from .optimizer_options import OptimizerConfig, SiTOptimizerConfig, check_optimizer
from .repa_options import ENCODER, RepaConfig, check_repa
from .teacher_options import MIXER_ARGUMENTS, TeacherConfig, automatic_blocks, check_teacher

if TYPE_CHECKING:
    from .task import Task

DEFAULT_PRESET = "SiT-ATConv-Nano/2"
TUNABLE = {"class_dropout_prob", *STEP_ARGUMENTS}  # arguments of the model that fine-tuning may change
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass
class DataConfig:
    """Data

    Args:
        data: the training images: "digits" (built in), a folder of images (one sub-folder per class, or images alone
            without classes), hf:NAME, parquet files, tar shards, an LMDB, a folder of precomputed latents, or
            teacher:N, N samples that teacher (or init_from) draws once. Options follow as "?name=value"; docs/data.md
            lists them.
        image_size: side of the training images in pixels. Required for all data except digits and latents.
        horizontal_flip: mirror half of the images, chosen at random.
        num_workers: number of processes that read images and draw noise. With 0, the training process does it itself.
        max_broken_images: number of unreadable images that are tolerated. They are skipped and listed; if there are
            more, the run stops.
        vae: an autoencoder of diffusers, given as a folder or as a name on the Hub, in whose latent space the model is
            trained; docs/data.md lists them. If null, the model is trained on pixels.
    """

    data: str = "digits"
    image_size: int | None = None
    horizontal_flip: bool = False
    num_workers: int = 0
    max_broken_images: int = 10
    vae: str | None = None


@dataclass
class ModelConfig:
    """Model

    Args:
        init_from: a pipeline folder whose transformer is fine-tuned. Its architecture and its VAE are taken over. If
            the classes differ, their embeddings are newly initialized; the embedding of "no class" is kept. With mixer,
            other mixers replace its self-attention (a graft).
        preset: name of a preset that sets model size, patch size and mixer, such as SiT-ATConv-S/2. Defaults to
            SiT-ATConv-Nano/2.
        mixer: the layer that mixes tokens: atconv, attention, pooled_attention, a mixture such as hybrid (see the
            presets), or a list with one of the first three for each block. Defaults to the mixer of the preset, or of
            init_from.
        model: further arguments of SiTTransformer2DModel, such as --model.class_dropout_prob 0.2.
    """

    init_from: str | None = None
    preset: str | None = None
    mixer: str | list[str] | None = None
    model: dict[str, Any] = field(default_factory=dict)


@dataclass
class AverageConfig:
    """Averages of the weights

    Args:
        ema_decay: decay of the exponential moving average of the weights, or a list of several. The first average is
            the one that is sampled and saved as the pipeline.
        ema_stds: relative standard deviations of power-function averages (EDM2), such as [0.05, 0.1]. They are tracked
            besides the exponential averages.
        ema_snapshot_every: number of updates between two snapshots of the power-function averages. Snapshots are kept
            in ema/ for post-hoc EMA.
    """

    ema_decay: float | list[float] = 0.995
    ema_stds: list[float] = field(default_factory=list)
    ema_snapshot_every: int = 10000

    @property
    def ema_decays(self) -> list[float]:
        """`ema_decay` as a list."""
        return self.ema_decay if isinstance(self.ema_decay, list) else [self.ema_decay]


@dataclass
class PrecisionConfig:
    """Precision and memory

    Args:
        mixed_precision: numeric precision of the forward and backward pass: no (float32), bf16 or fp16. Defaults to the
            precision that accelerate is configured with.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        compile: compile each block with torch.compile.
    """

    mixed_precision: Literal["no", "bf16", "fp16", False] | None = None  # YAML reads "no" as False
    gradient_checkpointing: bool = False
    compile: bool = False


@dataclass
class RunConfig:
    """Run folder

    Args:
        output_dir: the run folder. Defaults to runs/DATA-MIXER; with init_from, to runs/DATA-finetuned, runs/DATA-lora,
            runs/DATA-grafted if there is a mixer, or runs/DATA-meanflow with objective meanflow.
        resume: "latest" continues the run in the output folder from its newest checkpoint; "auto" does the same, or
            starts the run if there is no checkpoint yet. If null, the folder must be new.
        dry_run: build everything, print the plan and take a step with one image per process and part; write nothing.
        checkpoint_every: number of updates between two checkpoints.
        keep_checkpoints: number of newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this step are kept for good. If null, only the newest ones are kept.
        push_to_hub: USER/NAME on the Hugging Face Hub, to which the finished pipeline is uploaded.
    """

    output_dir: str | None = None
    resume: Literal["latest", "auto"] | None = None
    dry_run: bool = False
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_every: int | None = None
    push_to_hub: str | None = None


@dataclass
class LoggingConfig:
    """Logging

    Args:
        log_with: tracker that logs the run besides metrics.jsonl: tensorboard, wandb, trackio or none. Defaults to
            tensorboard if it is installed.
        log_every: number of updates between two lines of metrics.jsonl.
        sample_every: number of updates between two sample grids.
        early_samples: also draw grids before the first update, and after a twentieth and a fifth of sample_every.
        sample_guidance_scale: scale of classifier-free guidance in the sample grids; 1 means no guidance.
        sample_steps: number of solver steps for the sample grids. Defaults to 25, and to 2 with objective meanflow.
    """

    log_with: Literal["tensorboard", "wandb", "trackio", "none", False] | None = None  # YAML reads "no" as False
    log_every: int = 50
    sample_every: int = 1000
    early_samples: bool = False
    sample_guidance_scale: float = 1.0
    sample_steps: int | None = None


GROUPS = (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RepaConfig,
    TeacherConfig,
    MeanFlowConfig,
    AdapterConfig,
    SiTOptimizerConfig,
    AverageConfig,
    PrecisionConfig,
    RunConfig,
    LoggingConfig,
)


@dataclass
class CommonConfig(RunConfig, PrecisionConfig, AverageConfig, OptimizerConfig):
    """What the training of every kind of model has, besides its data and its logging. `Trainer` needs these options."""

    if TYPE_CHECKING:  # they are options of other groups
        data: str = ""
        num_workers: int = 0
        max_broken_images: int = 0
        log_with: Literal["tensorboard", "wandb", "trackio", "none", False] | None = None
        log_every: int = 0

    def task_class(self) -> "type[Task]":
        """The task of the run."""
        raise NotImplementedError

    def check_common(self) -> None:
        """Check the values of these options, and turn the off that YAML reads into words.

        Raises:
            ValueError: for values that no run can use.
        """
        check_given(self)
        for name, off in (("mixed_precision", "no"), ("log_with", "none")):
            if getattr(self, name) is False:
                setattr(self, name, off)
        check_optimizer(vars(self))
        for name in ("log_every", "checkpoint_every", "keep_checkpoints", "ema_snapshot_every"):
            check_count(name, getattr(self, name))
        if self.keep_every is not None:
            check_count("keep_every", self.keep_every)
        if self.mixed_precision is not None:  # it may come from accelerate's configuration
            check_choice("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        if self.log_with is not None:
            check_choice("log_with", self.log_with, (*TRACKERS, "none"))
        check_count("max_broken_images", self.max_broken_images, least=0)
        check_count("num_workers", self.num_workers, least=0, most=MAX_WORKERS)
        profile_weights(self.ema_decays, self.ema_stds)

    @property
    def run_folder(self) -> Path:
        """`output_dir` as a path."""
        assert self.output_dir is not None  # __post_init__
        return Path(self.output_dir)

    @property
    def continuation(self) -> str:
        """What continues this run once it has stopped, for messages."""
        return "the same command" if self.resume else "the same command and --resume latest"


@dataclass
# dataclasses collect the fields from the last base to the first, so this is the order of `GROUPS`
class TrainConfig(
    LoggingConfig,
    CommonConfig,
    SiTOptimizerConfig,
    AdapterConfig,
    MeanFlowConfig,
    TeacherConfig,
    RepaConfig,
    ObjectiveConfig,
    ModelConfig,
    DataConfig,
):
    """Train SiT on images. The defaults are the built-in recipe: handwritten digits, in about 5 minutes on 2 cores.

    The options of all groups above are options of this class. `preset`, `mixer` and `output_dir` are resolved from the
    other options if they are None; nothing is read from the disk.

    Raises:
        ValueError: for values that no run can use, naming the field, its value and what it may be.
    """

    def task_class(self) -> "type[Task]":
        from .adapter_task import AdapterTask  # it imports PyTorch and diffusers, which options can do without
        from .sit_task import SiTTask

        return SiTTask if self.lora_rank is None else AdapterTask

    def __post_init__(self) -> None:
        self.check_common()
        if self.repa is not None:
            self.repa = self.repa.removeprefix(ENCODER)
        if self.init_from is None:
            self.preset = DEFAULT_PRESET if self.preset is None else self.preset
            check_preset(self.preset)
            self.mixer = PRESETS[self.preset]["mixer"] if self.mixer is None else self.mixer
            if automatic_blocks(self.mixer) is not None:
                raise ValueError(f"mixer={self.mixer!r} replaces blocks of a trained model; give --init_from")
            check_model(self.model, PRESETS[self.preset], self.mixer)
        tunable = TUNABLE | ({*MIXER_ARGUMENTS} if self.mixer is not None else set())
        if self.init_from is not None and (self.preset or self.model.keys() - tunable):
            given = {"preset": self.preset}
            given |= {f"model.{name}": value for name, value in self.model.items() if name not in tunable}
            named = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
            raise ValueError(f"init_from={self.init_from!r} sets the architecture; remove: {named}")
        if isinstance(self.mixer, str) and automatic_blocks(self.mixer) is None:
            check_choice("mixer", self.mixer, MIXER_NAMES)
        if self.sample_steps is None:
            self.sample_steps = 2 if self.objective == "meanflow" else 25
        self._check_values()
        if self.output_dir is None:
            self.output_dir = f"runs/{source_name(self.data)}-{self._kind}"

    @property
    def _kind(self) -> str:
        """What tells the default run folder of this run from that of others on the same data."""
        if self.init_from is not None:
            tuned = "grafted" if self.mixer is not None else "finetuned" if self.lora_rank is None else "lora"
            return "meanflow" if self.objective == "meanflow" else tuned
        mixer = self.mixer if isinstance(self.mixer, str) else "mixed"
        return f"{mixer}-meanflow" if self.objective == "meanflow" else mixer

    def _check_values(self) -> None:
        check_choice("objective", self.objective, ("flow", "meanflow"))
        check_mean_flow(vars(self))
        check_teacher(vars(self))
        check_objective_options(vars(self))
        check_repa(vars(self))
        check_adapter(vars(self))
        check_count("sample_every", self.sample_every)
        check_count("sample_steps", self.sample_steps, most=MAX_SOLVER_STEPS)
        if self.image_size is not None:
            check_count("image_size", self.image_size)
        check_non_negative("sample_guidance_scale", self.sample_guidance_scale)
        check_float32("sample_guidance_scale", self.sample_guidance_scale)
