"""The task of training SiT: what `Trainer` needs to know about transformers that generate images."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import nn

from ..data import BROKEN_IMAGES_FILE, TrainingView, View
from ..models.transformer_sit import SiTTransformer2DModel
from ..utils.image_grid import save_grid
from ..utils.imagenet import name_synsets
from .build import Components, build_components, build_objective, build_pipeline
from .config import TrainConfig
from .ema import WeightAverages
from .finish import print_next_steps, save_pipeline, upload
from .lineage import describe_lineage
from .mixer_regression import StagedObjective
from .objective import Objective
from .optimizer import build_optimizer, learning_rate, muon_matrices
from .plan import describe_plan
from .run_folder import describe_data
from .samples import GRID_COLUMNS, MIN_TILE, sample_grid
from .step_report import StepReport
from .stored_config import resolve_config
from .task import Task


class SiTTask(Task):
    """Train a transformer on images or latents, draw grids of samples, and leave a pipeline folder.

    Attributes:
        components: the parts of the run.
        objective: the loss of a batch.
        lineage: the trained pipelines that the model is made of.
    """

    exported = "pipeline"
    has_times = True
    config: TrainConfig
    components: Components
    objective: Objective | StagedObjective

    @staticmethod
    def resolve(config: TrainConfig) -> TrainConfig:
        return resolve_config(config)

    def build(self) -> None:
        self.components = parts = build_components(self.config, self.accelerator)
        self.dataset, self.model = parts.dataset, parts.transformer
        self.trained, self.modules = parts.trained, parts.modules
        self.lineage = describe_lineage(self.config, parts.graft)

    def verify_data(self) -> None:
        self.dataset.verify()

    def describe_data(self) -> dict[str, Any]:
        return describe_data(self.dataset, self.components.vae)

    def plan(self) -> str:
        accelerator, parts = self.accelerator, self.components
        return describe_plan(
            self.config,
            parts.dataset,
            parts.transformer,
            parts.projector,
            accelerator.num_processes,
            accelerator.distributed_type == DistributedType.FSDP,
            accelerator.mixed_precision,
            parts.graft,
            accelerator.device,
        )

    def prepare(self) -> None:
        transformer = self.components.transformer
        if self.config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self.config.compile:
            transformer.compile_repeated_blocks(fullgraph=True)

    def view(self) -> View:
        config, model = self.config, self.components.transformer.config
        shape = (model.in_channels, model.sample_size, model.sample_size)
        has_vae, has_steps = self.components.vae is not None, config.objective == "meanflow"
        stored = config.aligned_samples(config.batch_size) if self.dataset.targets is not None else 0
        scale = config.noise_scale
        return TrainingView(self.dataset, config.seed, config.horizontal_flip, shape, has_vae, has_steps, stored, scale)

    def build_optimizer(self) -> torch.optim.Optimizer:
        matrices = muon_matrices(self.components.transformer.blocks) if self.config.optimizer == "muon" else None
        return build_optimizer(self.config, self.trained, matrices)

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.config.graft_steps)

    def starts_over(self, step: int) -> bool:
        return step == self.config.graft_steps > 0

    def record(self) -> None:
        if self.components.graft is not None:
            self.components.graft.record(self.config.run_folder)

    def distributed(self, model: nn.Module) -> None:
        self.objective = build_objective(self.config, self.components, model, self.accelerator)

    def loss(self, batch: dict[str, torch.Tensor], report: StepReport) -> torch.Tensor:
        diffusion, t, alignment, weights = self.objective.losses(batch)
        report.alignment += alignment.detach().sum() / self.config.batch_size
        report.add_losses(diffusion.detach(), t)
        return (weights * diffusion).mean() + self.config.repa_coefficient * alignment.mean()

    def describe_model(self) -> dict[str, Any]:
        config = self.components.transformer.config
        return {
            "transformer": {key: value for key, value in config.items() if not key.startswith("_")},
            "lineage": self.lineage,
        }

    @property
    def validate_every(self) -> int:
        return self.config.sample_every

    @property
    def early_validations(self) -> tuple[int, ...]:
        every = self.config.sample_every
        return (0, every // 20, every // 5) if self.config.early_samples else ()

    def validate(self, step: int, averages: WeightAverages) -> None:
        """Draw the sample grid with the first average of the weights."""
        parts = self.components
        if parts.vae is not None:
            parts.vae.to(self.accelerator.device)
        with averages.in_place_of(self.model):
            pipeline = build_pipeline(self.config, parts.transformer, parts.vae, parts.dataset.classes)
            images = sample_grid(self.config, pipeline, self.accelerator)
        if parts.vae is not None and parts.dataset.is_encoded:
            parts.vae.to("cpu")  # training does not need it
        if self.accelerator.is_main_process:
            names = [name.split(",")[0] for name in name_synsets(parts.dataset.classes)[: len(images) // GRID_COLUMNS]]
            save_grid(images, self.sample_file(step), GRID_COLUMNS, MIN_TILE, names)

    def picture(self, step: int) -> Path | None:
        return self.sample_file(step)

    def is_validated(self, step: int) -> bool:
        return self.sample_file(step).exists()

    def sample_file(self, step: int) -> Path:
        """The picture of a sample grid."""
        return self.config.run_folder / "samples" / f"step-{step:08d}.png"

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        parts = self.components
        averaged = SiTTransformer2DModel.from_config(parts.transformer.config)
        averaged.load_state_dict(weights)
        pipeline = build_pipeline(self.config, averaged, parts.vae, parts.dataset.classes)
        samples = self.sample_file(self.config.max_steps)
        save_pipeline(pipeline, folder, dataclasses.asdict(self.config), samples, self.lineage)
        met_broken_images = (self.config.run_folder / BROKEN_IMAGES_FILE).exists()
        print_next_steps(parts.dataset, folder, self.config.max_broken_images if met_broken_images else 0)

    def upload(self, folder: Path, repo_id: str) -> str:
        return upload(folder, repo_id)
