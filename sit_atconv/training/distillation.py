"""The objective of a flow that learns from a teacher, on a batch.

t=0 noise, t=1 data. B images, C channels of size S × S.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from ..flow.callbacks import ModelFn
from ..flow.distillation import DistillationLoss
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE
from .objective import Objective
from .repa import Targets
from .target_network import TargetNetwork


class DistillationObjective(Objective):
    """The losses of a batch. The teacher drops the labels that the trained model drops.

    Args:
        distillation: the loss.
        model: as for `Objective`.
        class_dropout_prob: as for `Objective`.
        vae: as for `Objective`.
        targets: as for `Objective`.
        teacher: the trained transformer.
        autocast: makes the context of the run's precision.
    """

    def __init__(
        self,
        distillation: DistillationLoss,
        model: nn.Module,
        class_dropout_prob: float,
        vae: VAE | None,
        targets: Targets | None,
        teacher: SiTTransformer2DModel,
        autocast: Callable[[], AbstractContextManager],
    ):
        super().__init__(distillation.flow, model, class_dropout_prob, vae, targets)
        self.distillation = distillation
        self.teacher = teacher
        self.autocast = autocast

    def errors(
        self,
        predict: ModelFn,
        x_1: torch.Tensor,
        t: torch.Tensor,
        batch: dict[str, torch.Tensor],
        dropped: torch.Tensor,
    ) -> torch.Tensor:
        teacher = TargetNetwork(self.teacher, batch["label"], dropped, self.autocast)
        return self.distillation(predict, teacher, x_1, batch["noise"], t, ~dropped)
