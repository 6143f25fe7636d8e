"""The objective of MeanFlow on a batch: spans and velocities, the network without its wrappers, and a teacher.

t=0 noise, t=1 data; x_0 noise, x_1 data; a span is a step from t to s > t. B images, C channels of size S × S.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ..flow.mean_flow import MeanFlowLoss, is_span_at
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE
from .objective import Losses, Objective
from .repa import Targets
from .target_network import TargetNetwork


class MeanFlowObjective(Objective):
    """The losses of a batch that has, besides what every batch has, ends and positions.

    Args:
        loss_fn: the loss.
        model: as for `Objective`.
        class_dropout_prob: as for `Objective`.
        vae: as for `Objective`.
        targets: as for `Objective`.
        network: the transformer inside of the model, without wrappers.
        teacher: the trained transformer; None without a teacher.
        share: share of the samples that are spans.
        unguided_samples: number of first samples of the run to whose target no guidance applies.
        autocast: makes the context of the run's precision.
    """

    loss_fn: MeanFlowLoss  # type: ignore[assignment]

    def __init__(
        self,
        loss_fn: MeanFlowLoss,
        model: nn.Module,
        class_dropout_prob: float,
        vae: VAE | None,
        targets: Targets | None,
        network: SiTTransformer2DModel,
        teacher: SiTTransformer2DModel | None,
        share: float,
        unguided_samples: int,
        autocast: Callable[[], AbstractContextManager],
    ):
        super().__init__(loss_fn, model, class_dropout_prob, vae, targets)  # type: ignore[arg-type]
        self.network = network
        self.teacher = teacher
        self.share = share
        self.unguided_samples = unguided_samples
        self.autocast = autocast

    def losses(self, batch: dict[str, torch.Tensor]) -> Losses:
        """Compute the losses of a batch, whose tensors are on the CPU or on the device of the model."""
        # Decided on the CPU: to find out on a GPU how many spans there are would wait for it.
        is_span = is_span_at(batch["position"].cpu(), self.share)
        is_guided = batch["position"].cpu() >= self.unguided_samples
        batch = self.on_device(batch | {"is_span": is_span, "spans": is_span.nonzero()[:, 0]})
        x_1 = self.latents(batch)  # (B, C, S, S)
        t, s = self.loss_fn.times_from_normal(batch["time"], batch["end_time"], batch["is_span"])  # each (B,)
        dropped = batch["dropout"] < self.class_dropout_prob  # (B,)
        outputs: list[Any] = []

        def predict(x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            outputs.append(self.model(x_t, t, batch["label"], class_dropout=dropped, end_timestep=s, return_dict=False))
            return outputs[0][0]

        network, teacher = (
            None if model is None else TargetNetwork(model, batch["label"], dropped, self.autocast)
            for model in (self.network, self.teacher)
        )
        assert network is not None
        guided = ~dropped if is_guided.all() else None  # batches lie on one side of the limit
        errors = self.loss_fn(predict, network, x_1, batch["noise"], t, s, batch["spans"], guided, teacher)
        return Losses(errors, t, self.alignment(outputs[0], batch, errors), self.loss_fn.weights(errors))
