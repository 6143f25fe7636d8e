"""What a run is for: the part of a training that differs between kinds of models.

`Trainer` does what every run needs (steps, checkpoints, faults, logging) and asks its task for the rest: the model and
its data, the loss of a batch, what is looked at in between, and what is left at the end.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..data import ImageDataset, View
from .ema import WeightAverages
from .step_report import StepReport


class Task(ABC):
    """The purpose of a run, on one of its processes.

    `Trainer` calls `build` first, `prepare` before the model is distributed, and then the others.

    Args:
        config: the resolved configuration of the run.
        accelerator: the processes of the run.

    Attributes:
        dataset: the training images.
        model: the network that is kept after training, and whose weights are averaged.
        trained: the module whose parameters are trained: the model, or one that contains it.
        modules: the modules whose state is in a checkpoint, by the name of their file. The model is "model".
        exported: name of the folder, in the run folder, that is left at the end.
        smallest_part: the fewest images with which a process can take one accumulation step.
        has_times: whether each loss belongs to a time t, by which it is logged.
    """

    exported: ClassVar[str]
    smallest_part: ClassVar[int] = 1
    has_times: ClassVar[bool] = False
    dataset: ImageDataset
    model: nn.Module
    trained: nn.Module
    modules: dict[str, nn.Module]

    def __init__(self, config: Any, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator

    @staticmethod
    @abstractmethod
    def resolve(config: Any) -> Any:
        """Check a configuration against the disk and the installed packages, and return it with what follows from them.

        Raises:
            ValueError: naming what cannot be used.
        """

    @abstractmethod
    def build(self) -> None:
        """Open the data and build what is trained on it.

        Raises:
            ValueError: naming what in the configuration or the data cannot be used.
        """

    @abstractmethod
    def verify_data(self) -> None:
        """Raise ValueError if files of the data have changed since they were written. One process calls this."""

    @abstractmethod
    def describe_data(self) -> dict[str, Any]:
        """Describe the content of the data as JSON values, wherever it is stored. One process calls this."""

    @abstractmethod
    def plan(self) -> str:
        """Describe what the run is about to do and what it needs."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the model ready, before it is distributed: gradient checkpointing, compilation."""

    @abstractmethod
    def view(self) -> View:
        """The data set as training sees it."""

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        """The order of one epoch: as many indices of images as there are images."""
        return self.dataset.epoch_order(generator)

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of all trained parameters, which takes `found_inf` as fused ones do, for `masked_step`."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""

    def starts_over(self, step: int) -> bool:
        """Whether the optimizer forgets its moments before update `step`, counted from 0, since a new stage begins."""
        return False

    def record(self) -> None:  # noqa: B027
        """Write what `build` has found out into the run folder, once the run starts. One process calls this."""

    @abstractmethod
    def distributed(self, model: nn.Module) -> None:
        """Take the trained module as accelerate has prepared it; `loss` calls it."""

    @abstractmethod
    def loss(self, batch: dict[str, torch.Tensor], report: StepReport) -> torch.Tensor:
        """Compute the loss of a part of a batch, and add it to the report of the step.

        Args:
            batch: the part, on the CPU.
            report: the report of this process.

        Returns:
            () the mean loss, of which the gradient is taken.
        """

    @abstractmethod
    def describe_model(self) -> dict[str, Any]:
        """The entries of state.json that say what the model is, as JSON values."""

    @property
    @abstractmethod
    def validate_every(self) -> int:
        """Number of updates between two calls of `validate`."""

    @property
    def early_validations(self) -> tuple[int, ...]:
        """Steps after which `validate` is called as well; 0 is before the first update."""
        return ()

    @abstractmethod
    def validate(self, step: int, averages: WeightAverages) -> None:
        """Look at what the model can do after a step, and write it into the run folder. All processes call this."""

    def picture(self, step: int) -> Path | None:
        """The picture that `validate` draws after this step, for the trackers."""
        return None

    @abstractmethod
    def is_validated(self, step: int) -> bool:
        """Whether the run folder holds what `validate` writes for this step. One process calls this."""

    @abstractmethod
    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Save the averaged model as a folder that can be used, and print what to do with it. One process calls this.

        Args:
            weights: the first average of the weights.
            folder: the folder to write or to replace.
        """

    @abstractmethod
    def upload(self, folder: Path, repo_id: str) -> str:
        """Upload the exported folder to the Hub; return the address of the upload.

        Raises:
            ValueError: if the upload fails, with what repeats it.
        """
