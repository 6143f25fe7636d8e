"""Build what a run trains and what it trains on: data, VAE, transformer, loss, and the pipeline that samples."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from ..data import ImageDataset, open_dataset
from ..flow.distillation import DistillationLoss
from ..flow.interpolants import Interpolant
from ..flow.losses import InterpolantLoss
from ..flow.mean_flow import MeanFlowLoss
from ..models.grafting import graft
from ..models.latent_scaling import vae_scale_factor
from ..models.presets import PRESETS
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE, load_vae
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_mean_flow import MeanFlowScheduler
from ..utils.checks import check_count
from ..utils.imagenet import name_synsets
from .config import TrainConfig
from .distillation import DistillationObjective
from .fine_tuning import check_teacher_vae, load_pretrained, load_teacher, pretrained_classes, take_over_weights
from .mean_flow import MeanFlowObjective
from .objective import Objective
from .processes import one_process_first
from .repa import AlignedTransformer, TargetEncoder
from .teacher_options import KERNEL_ARGUMENTS


@dataclass
class Components:
    """The parts of a run, before they are distributed over processes.

    Args:
        dataset: the training images or precomputed latents.
        vae: the VAE; None if the model is trained on pixels.
        transformer: the model that is kept after training.
        trained: the module whose parameters are trained: the transformer, or an `AlignedTransformer` with REPA.
        loss_fn: the interpolant and its loss.
        encoder: the encoder whose features are predicted; None without REPA.
        teacher: the transformer whose outputs are learnt; None without one.
    """

    dataset: ImageDataset
    vae: VAE | None
    transformer: SiTTransformer2DModel
    trained: nn.Module
    loss_fn: InterpolantLoss | MeanFlowLoss
    encoder: TargetEncoder | None
    teacher: SiTTransformer2DModel | None = None

    @property
    def projector(self) -> nn.Module | None:
        """The projector that is trained together with the transformer; None without REPA."""
        return self.trained.projector if isinstance(self.trained, AlignedTransformer) else None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules whose state is in a checkpoint, by the name of their file."""
        return {"model": self.transformer} | ({} if self.projector is None else {"projector": self.projector})


def build_components(config: TrainConfig, accelerator: Accelerator) -> Components:
    """Open the data and build everything that is trained on it.

    Raises:
        ValueError: naming what in the configuration or the data cannot be used.
    """
    dataset = one_process_first(accelerator, lambda: open_dataset(config.data, config.image_size))
    dataset.check_output("output_dir", config.run_folder)
    if len(dataset) < config.batch_size:
        raise ValueError(f"batch_size={config.batch_size} exceeds the {len(dataset)} images of data={config.data!r}")
    vae = None if config.vae is None else load_vae(config.vae).to(accelerator.device)
    dataset.check_training(vae, config.horizontal_flip)
    transformer = build_transformer(config, dataset, vae)
    if config.sample_guidance_scale != 1 and transformer.config.class_dropout_prob == 0:
        raise ValueError(
            f"sample_guidance_scale={config.sample_guidance_scale}: without class dropout the model cannot be guided; "
            "use 1, or a class_dropout_prob above 0"
        )
    if config.meanflow_guidance_scale != 1 and config.teacher is None and transformer.config.class_dropout_prob == 0:
        raise ValueError(
            f"meanflow_guidance_scale={config.meanflow_guidance_scale}: without class dropout the model does not know "
            "what it predicts without a label; use 1, or a class_dropout_prob above 0"
        )
    loss_fn, teacher = build_loss(config), None
    if config.teacher is not None:
        check_teacher_vae(config.teacher, config.vae, vae)
        classes = name_synsets(dataset.classes)
        scale = config.meanflow_guidance_scale * config.teacher_guidance_scale  # the other objective's is 1
        teacher = load_teacher(config.teacher, transformer, classes, scale).to(accelerator.device)
    if config.repa is None:
        return Components(dataset, vae, transformer, transformer, loss_fn, None, teacher)
    dataset.check_pixels(f"repa={config.repa!r} compares features with those of images, but")
    side = transformer.config.sample_size // transformer.config.patch_size
    encoder = TargetEncoder(config.repa, config.repa_weights, (side, side), accelerator.device)
    aligned = AlignedTransformer(transformer, config.repa_depth, encoder.features, config.seed)
    return Components(dataset, vae, transformer, aligned, loss_fn, encoder, teacher)


def build_loss(config: TrainConfig) -> InterpolantLoss | MeanFlowLoss:
    """Build the loss that the objective asks for."""
    interpolant = Interpolant(config.path, config.prediction)
    if config.objective == "flow":
        return InterpolantLoss(interpolant, config.weighting, config.time_sampling, config.time_shift)
    return MeanFlowLoss(
        interpolant,
        config.meanflow_tangent if config.teacher is None else "teacher",
        config.meanflow_derivative,
        config.time_sampling,
        config.time_shift,
        config.meanflow_data_end_share,
        config.meanflow_adaptive_power,
        config.meanflow_guidance_scale,
        config.meanflow_guidance_mix,
    )


def build_objective(
    config: TrainConfig, components: Components, model: nn.Module, accelerator: Accelerator
) -> Objective:
    """Build the objective of the run for `model`, the trained module as accelerate has prepared it.

    Raises:
        ValueError: for MeanFlow with sharded weights.
    """
    transformer, loss_fn = components.transformer, components.loss_fn
    parts = (model, transformer.config.class_dropout_prob, components.vae, components.encoder)
    if isinstance(loss_fn, InterpolantLoss):
        if components.teacher is None:
            return Objective(loss_fn, *parts)
        weights = (config.teacher_weight, config.flow_weight, config.teacher_guidance_scale)
        distillation = DistillationLoss(loss_fn, *weights)
        return DistillationObjective(distillation, *parts, components.teacher, accelerator.autocast)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "objective=meanflow: its derivative needs the whole weights, which FSDP shards; use DDP, as in "
            "train/configs/accelerate/ddp_8gpus.yaml"
        )
    return MeanFlowObjective(
        loss_fn,
        *parts,
        network=transformer,
        teacher=components.teacher,
        share=config.meanflow_share,
        unguided_samples=config.meanflow_guidance_warmup_steps * config.batch_size,
        autocast=accelerator.autocast,
    )


def build_transformer(config: TrainConfig, dataset: ImageDataset, vae: VAE | None) -> SiTTransformer2DModel:
    """Build the transformer for this data, freshly initialized from `seed`, or fine-tuned or grafted from `init_from`.

    Raises:
        ValueError: if image size, VAE factor and patch size do not fit, channels differ, or an argument is unknown.
    """
    trained = None if config.init_from is None else load_pretrained(config.init_from)
    if trained is not None and config.mixer is not None:
        trained = grafted(config, trained)
    if trained is not None:
        base = {key: value for key, value in trained.config.items() if not key.startswith("_")}
    else:
        assert config.preset is not None  # TrainConfig fills it in
        base = PRESETS[config.preset]
    arguments = _data_arguments(config, dataset, vae, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            transformer = SiTTransformer2DModel(**{**base, **arguments, **config.model})
        except TypeError as error:
            reason = str(error).replace("SiTTransformer2DModel.__init__() ", "")
            raise ValueError(f"model={config.model}: {reason}") from error
    if trained is not None and config.init_from is not None:
        same_classes = pretrained_classes(config.init_from) == name_synsets(dataset.classes)
        take_over_weights(transformer, trained, same_classes)
    return transformer


def grafted(config: TrainConfig, trained: SiTTransformer2DModel) -> SiTTransformer2DModel:
    """Replace the mixers of a trained model as `config` says; the new weights follow from its seed."""
    assert config.mixer is not None
    arguments = {name: value for name, value in config.model.items() if name in KERNEL_ARGUMENTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return graft(trained, config.mixer, config.graft_init, **arguments)


def _data_arguments(
    config: TrainConfig, dataset: ImageDataset, vae: VAE | None, base: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of the transformer that follow from data, VAE and mixer, checked against the others."""
    factor = vae_scale_factor(vae)
    patch_size = config.model.get("patch_size", base["patch_size"])
    check_count("model.patch_size", patch_size)
    if dataset.image_size % (factor * patch_size):
        raise ValueError(
            f"image_size={dataset.image_size} must be divisible by {factor * patch_size} "
            f"(VAE factor {factor} × patch size {patch_size})"
        )
    if vae is not None and vae.config.in_channels != dataset.channels:
        raise ValueError(
            f"vae={config.vae!r} takes {vae.config.in_channels} channels, but the images of data={config.data!r} have "
            f"{dataset.channels}"
        )
    is_meanflow = config.objective == "meanflow"
    arguments: dict[str, Any] = {
        "trained_guidance_scale": config.meanflow_guidance_scale if is_meanflow else config.teacher_guidance_scale,
        "sample_size": dataset.image_size // factor,
        "in_channels": dataset.channels if vae is None else vae.config.latent_channels,
        "num_classes": dataset.num_classes,
    }
    if config.init_from is None:
        arguments["mixer"] = config.mixer
    elif arguments["in_channels"] != base["in_channels"]:
        raise ValueError(
            f"init_from={config.init_from!r} works on {base['in_channels']} channels, but data={config.data!r} and "
            f"vae={config.vae!r} give {arguments['in_channels']}"
        )
    if is_meanflow and config.model.get("step_conditioning") == "none":
        raise ValueError("model.step_conditioning='none' does not know the ends of steps; choose 'span' or 'decoupled'")
    if fixed := sorted({*arguments, "out_channels"} & config.model.keys()):
        raise ValueError(f"model: {', '.join(fixed)} follow from --data, --vae and --mixer; leave them out")
    if is_meanflow and base.get("step_conditioning", "none") == "none":
        arguments["step_conditioning"] = "span"
    if not dataset.classes:
        arguments["class_dropout_prob"] = 0.0  # there are no labels to drop
    return arguments


def build_pipeline(
    config: TrainConfig, transformer: SiTTransformer2DModel, vae: VAE | None, classes: list[str]
) -> SiTPipeline:
    """Build the pipeline that samples what a run trains."""
    scheduler_class = MeanFlowScheduler if config.objective == "meanflow" else InterpolantODEScheduler
    scheduler = scheduler_class(path=config.path, prediction=config.prediction)
    return SiTPipeline(transformer, scheduler, vae, id2label=dict(enumerate(name_synsets(classes))))
