"""The configuration of a training run, and the parts that the loop in train/train_sit.py puts together."""

import dataclasses
import importlib.util
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch.func import functional_call

from ..data import ImageDataset, source_name
from ..flow.losses import TIME_SAMPLINGS, WEIGHTINGS
from ..models.macs import closed_form_macs
from ..models.transformer_sit import PRESETS, SiTTransformer2DModel, check_preset
from ..models.vae import vae_scale_factor
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..utils.checks import check_choice, check_count, check_positive
from ..utils.files import STAGING, sync, write_atomically
from ..utils.hashing import tensors_sha256
from ..utils.imagenet import name_synsets
from .checkpoints import STATE, checkpoint_steps
from .ema import profile_weights

# What may differ when a run is continued. Everything else would make it another run. Data and VAE may lie elsewhere:
# what is in them is compared with the checkpoint's.
CHANGEABLE_ON_RESUME = {
    "data",
    "vae",
    "resume",
    "dry_run",
    "output_dir",
    "max_steps",
    "num_workers",
    "max_broken_images",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "compile",
    "max_skipped_steps",
    "log_with",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "sample_guidance_scale",
    "sample_steps",
    "push_to_hub",
}
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


def prepare_run_folder(config: TrainConfig) -> bool:
    """Make sure that the output folder is free, or holds the run to continue; return whether it is continued.

    Raises:
        ValueError: where the folder holds something else, there is nothing to resume, or the configs differ.
    """
    folder = Path(config.output_dir)
    checkpoints = checkpoint_steps(folder / "checkpoints")
    if config.resume == "latest" and not checkpoints:
        raise ValueError(f"resume=latest: {folder}/checkpoints holds no checkpoint; leave --resume out to start a run")
    starts_over = config.resume == "auto" and not checkpoints and not _changes(config, folder)
    if config.resume is None or not checkpoints:
        if not starts_over and folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(
                f"output_dir={str(folder)!r} holds another run; choose another --output_dir, or continue that run with "
                "--resume latest"
            )
        return False
    if changed := _changes(config, folder):
        raise ValueError(f"resume={config.resume}: this is another run than the one in {folder}: {'; '.join(changed)}")
    return True


def _changes(config: TrainConfig, folder: Path) -> list[str]:
    """What sets this run apart from the one in `folder`."""
    try:
        # an option that is younger than the run had its default in it
        saved = dataclasses.asdict(TrainConfig()) | yaml.safe_load((folder / "config.yaml").read_text())
    except FileNotFoundError:
        return [f"{folder} holds no config.yaml"]
    return [
        f"{name}: {saved[name]!r} -> {value!r}"
        for name, value in dataclasses.asdict(config).items()
        if name not in CHANGEABLE_ON_RESUME and saved[name] != value
    ]


def save_config(config: TrainConfig) -> None:
    """Write the resolved configuration to config.yaml in the run folder."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", text)


def describe_data(dataset: ImageDataset, vae: torch.nn.Module | None) -> dict[str, Any]:
    """What tells one data set and its VAE from others, wherever they lie, as JSON holds it.

    It may look at every file: do it once.
    """
    return {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "fingerprint": dataset.fingerprint(),
        "vae_sha256": None if vae is None else tensors_sha256(vae.state_dict()),
    }


def check_continues(config: TrainConfig, data: dict[str, Any], checkpoint: Path) -> None:
    """Make sure that a verified checkpoint is of this data, as `describe_data` has it, and within `max_steps`.

    Raises:
        ValueError: naming what differs.
    """
    state = json.loads((checkpoint / STATE).read_text())
    saved = state["data"]
    if changed := [f"{key}: {saved.get(key)!r} -> {value!r}" for key, value in data.items() if saved.get(key) != value]:
        raise ValueError(
            f"data={config.data!r}, vae={config.vae!r}: not what {checkpoint} was trained on: {'; '.join(changed)}"
        )
    if state["step"] > config.max_steps:  # at max_steps all that is left is to write the pipeline
        raise ValueError(
            f"resume={config.resume}: the run in {config.output_dir} has done {state['step']} steps; raise --max_steps"
        )


def build_transformer(config: TrainConfig, dataset: ImageDataset, vae: torch.nn.Module | None) -> SiTTransformer2DModel:
    """The model for this data, freshly initialised or that of `init_from`: a function of the config alone.

    Raises:
        ValueError: where image size, VAE factor and patch size do not fit, channels differ, or an argument is unknown.
    """
    if config.init_from is None:
        trained, base = None, PRESETS[config.preset]
    else:
        trained = _load_trained(config.init_from)
        base = {key: value for key, value in trained.config.items() if not key.startswith("_")}
    factor = vae_scale_factor(vae)
    patch_size = config.model.get("patch_size", base["patch_size"])
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
    }
    if trained is None:
        arguments["mixer"] = config.mixer
    elif arguments["in_channels"] != base["in_channels"]:
        raise ValueError(
            f"init_from={config.init_from!r} works on {base['in_channels']} channels, data={config.data!r} and "
            f"vae={config.vae!r} give {arguments['in_channels']}"
        )
    if fixed := sorted({*arguments, "out_channels"} & config.model.keys()):
        raise ValueError(f"model: {', '.join(fixed)} follow from --data, --vae and --mixer; leave them out")
    if not dataset.classes:
        arguments["class_dropout_prob"] = 0.0  # there is nothing to drop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            transformer = SiTTransformer2DModel(**{**base, **arguments, **config.model})
        except TypeError as error:
            reason = str(error).replace("SiTTransformer2DModel.__init__() ", "")
            raise ValueError(f"model={config.model}: {reason}") from error
    if trained is not None:
        _take_over_weights(
            transformer, trained, same_classes=_class_names(config.init_from) == name_synsets(dataset.classes)
        )
    return transformer


def _load_trained(folder: str) -> SiTTransformer2DModel:
    try:
        return SiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True).float()
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from={folder!r} cannot be loaded: {error}") from error


def _class_names(folder: str) -> list[str]:
    names = json.loads((Path(folder) / "model_index.json").read_text()).get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)]


def _take_over_weights(new: SiTTransformer2DModel, trained: SiTTransformer2DModel, same_classes: bool) -> None:
    """Copy all weights, but for the rows of the label embedding whose classes are others."""
    state, rows = trained.state_dict(), new.class_embed.weight.detach().clone()
    if same_classes and new.config.num_classes == trained.config.num_classes:  # classes may have no names
        rows[: trained.config.num_classes] = state["class_embed.weight"][: trained.config.num_classes]
    row, trained_row = _no_class_row(new), _no_class_row(trained)
    if row is not None and trained_row is not None:
        rows[row] = state["class_embed.weight"][trained_row]
    new.load_state_dict(state | {"class_embed.weight": rows})


def _no_class_row(model: SiTTransformer2DModel) -> int | None:
    """Where the label embedding stands for no class: in the null row or, without classes, in the only one."""
    if model.config.class_dropout_prob > 0:
        return model.null_class
    return 0 if model.config.num_classes == 1 else None


def activation_bytes(model: SiTTransformer2DModel) -> int:
    """Float32 bytes that the forward pass of one image keeps for the backward pass, from shapes alone."""
    size = model.config.sample_size
    tokens, heads = (size // model.config.patch_size) ** 2, model.config.num_attention_heads
    weights = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in model.named_parameters()}
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # one matrix a head: scores, which fused attention does not keep
        scores = tensor.shape[-2:] == (tokens, tokens) and tensor.numel() == heads * tokens**2
        if tensor.untyped_storage()._cdata not in own and not scores:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.empty(1, model.config.in_channels, size, size)
        dropout = torch.zeros(1, dtype=torch.bool)
        arguments = (x, torch.empty(1), torch.empty(1, dtype=torch.long))
        output = functional_call(model, weights, arguments, dict(class_dropout=dropout)).sample
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def describe_plan(
    config: TrainConfig,
    dataset: ImageDataset,
    transformer: SiTTransformer2DModel,
    projector: torch.nn.Module | None,
    processes: int,
    sharded: bool,
    mixed_precision: str,
) -> str:
    """What a run is about to do and need, for people: data, model, batch, compute, memory.

    Call it before gradient checkpointing is switched on and before the model is sharded.
    """
    size = transformer.config.sample_size
    trained = sum(p.numel() for p in transformer.parameters())
    extra = 0 if projector is None else sum(p.numel() for p in projector.parameters())
    macs = closed_form_macs(transformer.config, size, size)
    per_device = config.batch_size // (processes * config.gradient_accumulation_steps)

    # weights, gradients and AdamW's two moments; each average, and the change of one while it is updated
    state = 16 * (trained + extra) + 4 * trained * (len(config.ema_decays) + len(config.ema_stds) + 1)
    activations = activation_bytes(transformer) / (1 if mixed_precision == "no" else 1.5)  # norms stay in float32
    if config.gradient_checkpointing:
        blocks = transformer.config.num_layers
        tokens = (size // transformer.config.patch_size) ** 2
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        activations = activations / blocks + blocks * tokens * width * 4
    activations *= per_device
    state /= processes if sharded else 1
    gmacs = f"{macs / 1e9:.2f}" if macs > 1e9 else f"{macs / 1e9:.2g}"
    precision = "float32" if mixed_precision == "no" else mixed_precision
    epochs = config.max_steps * config.batch_size / len(dataset)
    exaflop = 6 * macs * config.batch_size * config.max_steps / 1e18
    classes = f"of {len(dataset.classes)} classes" if dataset.classes else "without classes"
    lines = [
        f"data        {len(dataset):,} images {classes}, {dataset.image_size}² pixels",
        f"model       {config.preset or config.init_from}, {transformer.config.mixer}, {trained / 1e6:.2f} M parameters"
        + (f" + {extra / 1e6:.2f} M of the projector" if extra else "")
        + f", {gmacs} GMACs an image on {size}² {'pixels' if config.vae is None else 'latents'}",
        f"batch       {config.batch_size} = {processes} processes × {config.gradient_accumulation_steps} "
        f"accumulation steps × {per_device} images, {precision}",
        f"length      {config.max_steps:,} steps, {epochs:.1f} epochs, {exaflop:.2g} EFLOP forward and backward",
        f"memory      about {(state + activations) / 1e9:.2f} GB a process: {state / 1e9:.2f} for weights, optimizer "
        f"and averages, {activations / 1e9:.2f} for activations; VAE and encoder on top",
    ]
    return "\n".join(lines)


def build_pipeline(config: TrainConfig, transformer, vae: torch.nn.Module | None, classes: list[str]) -> SiTPipeline:
    """The pipeline that samples what is being trained."""
    scheduler = InterpolantODEScheduler(path=config.path, prediction=config.prediction)
    return SiTPipeline(transformer, scheduler, vae, id2label=dict(enumerate(name_synsets(classes))))


def save_pipeline(pipeline: SiTPipeline, folder: Path) -> None:
    """Save a pipeline such that a kill or a power cut leaves the former folder, or none, but no half of one."""
    staging, old = (folder.with_name(f"{STAGING}{name}{folder.name}") for name in ("", "old-"))
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    for path in (*staging.rglob("*"), staging):
        sync(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    staging.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    if config.lr_schedule == "constant":
        return config.learning_rate * warmup
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
