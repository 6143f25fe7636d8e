"""The training objective of a batch: interpolate, predict, compare, and align representations if the run uses REPA.

t=0 noise, t=1 data; x_0 noise, x_1 data. B images, C channels of size S × S as the transformer takes them; N tokens, Z
features of the encoder.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from ..flow.callbacks import ModelFn
from ..flow.losses import InterpolantLoss
from ..models.vae import VAE, encode
from .repa import Targets, alignment_loss


class Losses(NamedTuple):
    """The losses of each image.

    Args:
        diffusion: (B,) squared error of the network's prediction.
        t: (B,) time at which the network was evaluated.
        alignment: (B,) alignment loss; 0 without REPA.
        weights: (B,) weight of each diffusion loss in what is minimized.
    """

    diffusion: torch.Tensor
    t: torch.Tensor
    alignment: torch.Tensor
    weights: torch.Tensor


class Objective:
    """The losses of a batch as `TrainingView` makes it.

    Args:
        loss_fn: the interpolant and its loss.
        model: the transformer, or an `AlignedTransformer` if there are targets.
        class_dropout_prob: probability that a label is replaced by the null class.
        vae: encodes pixels; None if the model is trained on pixels.
        targets: the targets of the alignment; None without REPA.

    Attributes:
        aligned_samples: number of first samples of the run that are aligned; infinite unless it is set.
    """

    aligned_samples: float = math.inf

    def __init__(
        self,
        loss_fn: InterpolantLoss,
        model: nn.Module,
        class_dropout_prob: float,
        vae: VAE | None = None,
        targets: Targets | None = None,
    ):
        self.loss_fn = loss_fn
        self.model = model
        self.class_dropout_prob = class_dropout_prob
        self.vae = vae
        self.targets = targets

    def losses(self, batch: dict[str, torch.Tensor]) -> Losses:
        """Compute the losses of a batch, whose tensors are on the CPU or on the device of the model."""
        batch = self.on_device(batch)
        x_1 = self.latents(batch)  # (B, C, S, S)
        t = self.loss_fn.time_from_normal(batch["time"])  # (B,)
        dropped = batch["dropout"] < self.class_dropout_prob  # (B,)
        outputs: list[Any] = []

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            outputs.append(self.model(x_t, t, batch["label"], class_dropout=dropped, return_dict=False))
            return outputs[0][0]

        diffusion = self.errors(predict, x_1, t, batch, dropped)
        return Losses(diffusion, t, self.alignment(outputs[0], batch, diffusion), torch.ones_like(diffusion))

    def errors(
        self,
        predict: ModelFn,
        x_1: torch.Tensor,
        t: torch.Tensor,
        batch: dict[str, torch.Tensor],
        dropped: torch.Tensor,
    ) -> torch.Tensor:
        """The error (B,) of the network's prediction.

        Args:
            predict: the network with the labels of the batch bound.
            x_1: (B, C, S, S) data.
            t: (B,) times.
            batch: the batch, on the device of the model.
            dropped: (B,) bool, the labels that are dropped.
        """
        return self.loss_fn(predict, x_1, batch["noise"], t)

    def alignment(self, output: Any, batch: dict[str, torch.Tensor], diffusion: torch.Tensor) -> torch.Tensor:
        """The alignment loss (B,) of the model's output for a batch; 0, like `diffusion`, without REPA."""
        if self.targets is None:
            return torch.zeros_like(diffusion)
        if not batch["aligned"]:
            return 0 * output.projected.float().mean((1, 2))  # DDP wants a gradient of every layer, if only of 0
        return alignment_loss(output.projected, self.targets(batch))

    def on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch to the device of the model; "aligned", whether its samples are, stays on the CPU."""
        device = next(self.model.parameters()).device
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        # The samples of an update lie on one side of the limit.
        return moved | {"aligned": batch["position"][0].cpu() < self.aligned_samples}

    @torch.no_grad()
    def latents(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the transformer is trained on: pixels, precomputed latents, or pixels that the VAE encodes here."""
        if "posterior" not in batch:
            return batch["x"]
        assert self.vae is not None  # TrainingView draws noise for the posterior only if there is a VAE
        return encode(self.vae, batch["x"], batch["posterior"])
