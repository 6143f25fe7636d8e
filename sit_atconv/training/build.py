"""Build what a run trains and what it trains on: data, VAE, transformer, loss, and the pipeline that samples."""

from dataclasses import dataclass

from accelerate import Accelerator, DistributedType
from torch import nn

from ..data import ImageDataset, open_dataset
from ..flow.distillation import DistillationLoss
from ..flow.interpolants import Interpolant
from ..flow.losses import InterpolantLoss
from ..flow.mean_flow import MeanFlowLoss
from ..models.latent_scaling import check_latent_statistics
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE, load_vae
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_mean_flow import MeanFlowScheduler
from ..utils.imagenet import name_synsets
from .config import TrainConfig
from .distillation import DistillationObjective
from .fine_tuning import check_teacher_vae, load_teacher
from .grafting import Graft, prepare_graft
from .initial_model import build_transformer
from .mean_flow import MeanFlowObjective
from .mixer_regression import CallableMixers, MixerRegression, StagedObjective
from .objective import Objective
from .processes import one_process_first
from .repa import AlignedTransformer, TargetEncoder, Targets
from .repa_targets import check_stored_targets
from .teacher_data import SampledWhenRead, TeacherDataset, is_teacher_data


@dataclass
class Components:
    """The parts of a run, before they are distributed over processes.

    Args:
        dataset: the training images or precomputed latents.
        vae: the VAE; None if the model is trained on pixels. It is on the CPU if the data are latents already, and then
            serves grids of samples and the pipeline.
        transformer: the model that is kept after training.
        trained: the module whose parameters are trained: the transformer, or an `AlignedTransformer` with REPA.
        loss_fn: the interpolant and its loss.
        targets: the features that are predicted; None without REPA.
        teacher: the transformer whose outputs are learnt; None without one.
        graft: what a graft replaces; None without one.
    """

    dataset: ImageDataset
    vae: VAE | None
    transformer: SiTTransformer2DModel
    trained: nn.Module
    loss_fn: InterpolantLoss | MeanFlowLoss
    targets: Targets | None
    teacher: SiTTransformer2DModel | None = None
    graft: Graft | None = None

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
    if config.optimizer == "muon" and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "optimizer=muon: its updates need whole matrices, which FSDP shards; use DDP, as in "
            "train/configs/accelerate/ddp_8gpus.yaml, or adamw"
        )
    dataset = open_data(config, accelerator)
    dataset.check_output("output_dir", config.run_folder)
    if len(dataset) < config.batch_size:
        raise ValueError(f"batch_size={config.batch_size} exceeds the {len(dataset)} images of data={config.data!r}")
    vae = None if config.vae is None else load_vae(config.vae)
    if vae is not None:
        check_latent_statistics(vae)
        vae.to("cpu" if dataset.is_encoded else accelerator.device)
    dataset.check_training(vae, config.horizontal_flip)
    graft = prepare_graft(config, dataset, vae, accelerator)
    transformer = build_transformer(config, dataset, vae, None if graft is None else graft.mixer)
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
        trained = CallableMixers(transformer) if config.graft_steps else transformer
        return Components(dataset, vae, transformer, trained, loss_fn, None, teacher, graft)
    aligned, targets = build_alignment(config, config.repa, dataset, transformer, accelerator)
    return Components(dataset, vae, transformer, aligned, loss_fn, targets, teacher, graft)


def build_alignment(
    config: TrainConfig, repa: str, dataset: ImageDataset, transformer: SiTTransformer2DModel, accelerator: Accelerator
) -> tuple[AlignedTransformer, Targets]:
    """Build the projector of a transformer, and what it is compared with; no encoder if its features are stored.

    Raises:
        ValueError: if the data are no images, and hold no features or others.
    """
    side = transformer.config.sample_size // transformer.config.patch_size
    encoder = None
    if dataset.is_encoded:
        features = check_stored_targets(dataset, repa, config.repa_weights, (side, side))["features"]
    else:
        encoder = TargetEncoder(repa, config.repa_weights, (side, side), accelerator.device)
        features = encoder.features
    depth, projector = config.repa_depth, config.repa_projector
    aligned = AlignedTransformer(transformer, depth, features, config.seed, projector)
    return aligned, Targets(encoder, config.repa_spatial_norm)


def open_data(config: TrainConfig, accelerator: Accelerator) -> ImageDataset:
    """Open the data of a run, and draw them first if they are samples of a trained model."""
    if not is_teacher_data(config.data):
        return one_process_first(accelerator, lambda: open_dataset(config.data, config.image_size))
    folder = config.init_from if config.teacher is None else config.teacher
    assert folder is not None  # TeacherConfig has checked it
    kind = SampledWhenRead if config.dry_run else TeacherDataset
    dataset = kind(config.data, folder, config.image_size)
    dataset.draw(accelerator)
    return dataset


def build_loss(config: TrainConfig) -> InterpolantLoss | MeanFlowLoss:
    """Build the loss that the objective asks for."""
    interpolant = Interpolant(**config.path_options)
    if config.objective == "flow":
        return InterpolantLoss(interpolant, config.weighting, sigma_floor=config.sigma_floor, **config.time_options)
    return MeanFlowLoss(
        interpolant,
        config.meanflow_tangent if config.teacher is None else "teacher",
        config.meanflow_derivative,
        data_end_share=config.meanflow_data_end_share,
        adaptive_power=config.meanflow_adaptive_power,
        guidance_scale=config.meanflow_guidance_scale,
        guidance_mix=config.meanflow_guidance_mix,
        **config.time_options,
    )


def build_objective(
    config: TrainConfig, components: Components, model: nn.Module, accelerator: Accelerator
) -> Objective | StagedObjective:
    """Build the objective of the run for `model`, the trained module as accelerate has prepared it.

    Raises:
        ValueError: for MeanFlow and the steps of a graft with sharded weights.
    """
    objective = build_whole_objective(config, components, model, accelerator)
    objective.aligned_samples = config.aligned_samples(config.batch_size)
    if not config.graft_steps:
        return objective
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            f"graft_steps={config.graft_steps}: FSDP shards whole blocks, but these steps call their mixers alone; use "
            "DDP, as in train/configs/accelerate/ddp_8gpus.yaml, or leave graft_steps out"
        )
    graft, loss_fn = components.graft, components.loss_fn
    assert graft is not None and graft.source is not None  # TeacherConfig has checked it
    flow = loss_fn if isinstance(loss_fn, InterpolantLoss) else loss_fn.flow
    parts = (flow, model, components.transformer.config.class_dropout_prob, components.vae)
    regression = MixerRegression(*parts, graft.source, graft.blocks, accelerator.autocast)
    return StagedObjective(regression, objective, config.graft_steps * config.batch_size)


def build_whole_objective(
    config: TrainConfig, components: Components, model: nn.Module, accelerator: Accelerator
) -> Objective:
    """Build the objective of the whole model, without the stage in which the new layers of a graft are trained alone.

    Raises:
        ValueError: for MeanFlow with sharded weights.
    """
    transformer, loss_fn = components.transformer, components.loss_fn
    parts = (model, transformer.config.class_dropout_prob, components.vae, components.targets)
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


def build_pipeline(
    config: TrainConfig, transformer: SiTTransformer2DModel, vae: VAE | None, classes: list[str]
) -> SiTPipeline:
    """Build the pipeline that samples what a run trains."""
    scheduler_class = MeanFlowScheduler if config.objective == "meanflow" else InterpolantODEScheduler
    scheduler = scheduler_class(**config.path_options)
    return SiTPipeline(transformer, scheduler, vae, id2label=dict(enumerate(name_synsets(classes))))
