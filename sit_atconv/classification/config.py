"""The configuration of the training of a classifier, grouped as in --help.

As for SiT, constructing it reads nothing from the disk and imports nothing that takes long.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..training.config import AverageConfig, CommonConfig, PrecisionConfig, RunConfig
from ..training.optimizer_options import OptimizerConfig
from ..utils.checks import check_choice, check_count, check_non_negative, check_share
from ..utils.source_names import source_name

if TYPE_CHECKING:
    from ..training.task import Task

# The model of the built-in recipe: an AttNet of 0.3 million parameters.
SMALL_MODEL = "attnet_xxs"
SMALL_ARGUMENTS = {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 96], "drop_path_rate": 0.0}
POLICIES = ("rand", "augmix", "original", "v0", "3a")  # beginnings of timm's policies of augmentation
DIGITS_SIZE = 32  # the side to which 8×8 digits are enlarged, so that four stages have something to look at


@dataclass
class ClassifierDataConfig:
    """Data

    Args:
        data: the training images, with classes: "digits" (built in), a folder with one sub-folder per class, hf:NAME,
            parquet files, tar shards or an LMDB. Options follow as "?name=value"; docs/data.md lists them.
        image_size: side in pixels of the images that the model sees. Required for all data except digits.
        validation: a source of images of the same classes, on which the model is evaluated. If null, a share of the
            training images is held out.
        held_out: share of each class that is held out if there is no `validation`. It is the same in every run.
        num_workers: number of processes that read and augment images. With 0, the training process does it itself.
        max_broken_images: number of unreadable images that are tolerated. They are skipped and listed; if there are
            more, the run stops.
    """

    data: str = "digits"
    image_size: int | None = None
    validation: str | None = None
    held_out: float = 0.1
    num_workers: int = 0
    max_broken_images: int = 10


@dataclass
class ClassifierModelConfig:
    """Model

    Args:
        model: a model of timm, such as attnet_t2 or timm:convnext_atto. Defaults to a small AttNet.
        model_args: further arguments of the model, such as --model_args.dims '[32, 64, 128, 240]'.
        drop_path: probability of leaving out a residual branch, of the last block. If null, that of the model.
        init_from: a folder or file with weights from which the training starts: of timm's save_for_hf, of
            sit-atconv convert, or the model folder of a run. A classifier of another number of classes starts anew.
    """

    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    drop_path: float | None = None
    init_from: str | None = None


@dataclass
class AugmentationConfig:
    """Augmentation

    Args:
        crop_scale: smallest and largest share of an image's area that a random crop covers.
        crop_ratio: smallest and largest aspect ratio of a random crop.
        horizontal_flip: probability of mirroring an image.
        auto_augment: a policy of timm, such as rand-m9-mstd0.5-inc1. If null, none.
        color_jitter: strength of random brightness, contrast and saturation, without auto_augment; 0 for none.
        random_erase: probability of erasing a rectangle of an image, with noise.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.
        mixup_prob: probability of mixing the images of a batch.
        mixup_switch_prob: probability of cutmix, if both are on.
        label_smoothing: share of a label that is spread over all classes.
        repeated_augmentation: number of times that an image is drawn in a row, each time augmented in another way. An
            epoch has as many samples as without, so it sees fewer images.
        interpolation: bicubic, bilinear or random; how images are resized in training. In evaluation, bicubic.
        crop_pct: in evaluation, images are resized to image_size / crop_pct and the centre is cut out.
    """

    crop_scale: list[float] = field(default_factory=lambda: [0.7, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 4 / 3])
    horizontal_flip: float = 0.0
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    label_smoothing: float = 0.1
    repeated_augmentation: int = 1
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    crop_pct: float = 1.0


@dataclass
class ClassifierOptimizerConfig(OptimizerConfig):
    """Optimizer

    Parameters with a single axis, such as biases and the weights of norms, have no weight decay. `OptimizerConfig`
    describes the other options, in --help as well.

    Args:
        lr_warmup_steps: number of updates over which the learning rate grows linearly from min_learning_rate.
        lr_schedule: learning rate after the warm-up: constant, or a cosine that reaches min_learning_rate at max_steps.
        min_learning_rate: learning rate at the start of the warm-up and at the end of the cosine.
    """

    max_steps: int = 900
    batch_size: int = 64
    learning_rate: float = 3e-3
    lr_warmup_steps: int = 50
    weight_decay: float = 0.05
    min_learning_rate: float = 1e-6


@dataclass
class ClassifierAverageConfig(AverageConfig):
    """Averages of the weights

    The running means of BatchNorm are averaged like weights. `AverageConfig` describes the other options.

    Args:
        ema_decay: decay of the exponential moving average of the weights, or a list of several. The first average is
            the one that is saved as the model; all are evaluated, and so are the weights themselves.
        ema_snapshot_every: number of updates between two snapshots of the power-function averages, which are kept in
            ema/.
    """

    ema_decay: float | list[float] = 0.99


@dataclass
class ClassifierLoggingConfig:
    """Logging

    Args:
        log_with: tracker that logs the run besides metrics.jsonl: tensorboard, wandb, trackio or none. Defaults to
            tensorboard if it is installed.
        log_every: number of updates between two lines of metrics.jsonl.
        evaluate_every: number of updates between two evaluations, which are also made at the end.
    """

    log_with: Literal["tensorboard", "wandb", "trackio", "none", False] | None = None  # YAML reads "no" as False
    log_every: int = 50
    evaluate_every: int = 300


GROUPS = (
    ClassifierDataConfig,
    ClassifierModelConfig,
    AugmentationConfig,
    ClassifierOptimizerConfig,
    ClassifierAverageConfig,
    PrecisionConfig,
    RunConfig,
    ClassifierLoggingConfig,
)


@dataclass
class ClassifierConfig(
    # The first base that sets a default decides, so those of a classifier come before the common ones.
    ClassifierLoggingConfig,
    ClassifierAverageConfig,
    ClassifierOptimizerConfig,
    CommonConfig,
    AugmentationConfig,
    ClassifierModelConfig,
    ClassifierDataConfig,
):
    """Train AttNet, or another model of timm, to classify images. The defaults are the built-in recipe: handwritten
    digits, in about 3 minutes on 2 cores.

    The options of all groups above are options of this class. `model`, `image_size` of the digits and `output_dir` are
    resolved from the other options if they are None; nothing is read from the disk.

    Raises:
        ValueError: for values that no run can use, naming the field, its value and what it may be.
    """

    def task_class(self) -> "type[Task]":
        from .task import ClassifierTask  # imports PyTorch and timm, which options can do without

        return ClassifierTask

    def __post_init__(self) -> None:
        self.check_common()
        if self.model is None:
            self.model = SMALL_MODEL
            self.model_args = SMALL_ARGUMENTS | self.model_args
        self.model = self.model.removeprefix("timm:")
        if self.image_size is None and self.data == "digits":
            self.image_size = DIGITS_SIZE
        if self.image_size is None:
            raise ValueError(f"image_size must be given for data={self.data!r}, such as --image_size 224")
        for name in ("image_size", "repeated_augmentation", "evaluate_every"):
            check_count(name, getattr(self, name))
        self._check_augmentation()
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be above 0 and below 1")
        check_non_negative("min_learning_rate", self.min_learning_rate)
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} exceeds learning_rate={self.learning_rate}; lower it"
            )
        if self.output_dir is None:
            self.output_dir = f"runs/{source_name(self.data)}-{self.model}"

    def _check_augmentation(self) -> None:
        for name in ("horizontal_flip", "random_erase", "mixup_prob", "mixup_switch_prob", "label_smoothing"):
            check_share(name, getattr(self, name))
        for name in ("mixup", "cutmix", "color_jitter"):
            check_non_negative(name, getattr(self, name))
        if self.label_smoothing == 1:
            raise ValueError("label_smoothing=1 leaves nothing of the labels; it must be below 1")
        check_choice("interpolation", self.interpolation, ("bicubic", "bilinear", "random"))
        for name, most in (("crop_scale", 1.0), ("crop_ratio", float("inf"))):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
                raise ValueError(f"{name}={values} must be two numbers above 0, the smaller one first, such as 0.6, 1")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} must be above 0 and at most 1")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must be at least 0 and below 1")
        if self.auto_augment is not None and not self.auto_augment.startswith(
            ("rand", "augmix", "original", "v0", "3a")
        ):
            raise ValueError(
                f"auto_augment={self.auto_augment!r} is no policy of timm; give one such as rand-m9-mstd0.5-inc1, "
                "original, v0, 3a or augmix-m3-w3"
            )
