"""Distillation of a flow: a network learns the outputs of a trained one, its teacher, at the same points.

t=0 noise, t=1 data; x (B, …), t (B,).
"""

from collections.abc import Callable

import torch

from ..utils.checks import check_non_negative, check_positive
from .callbacks import check_output
from .interpolants import expand_like
from .losses import InterpolantLoss
from .mean_flow import BoundNetwork


class DistillationLoss:
    """The squared error of a network's output against that of its teacher, and against the data.

    Both networks have the same path and prediction. Their outputs are compared as `InterpolantLoss` compares an output
    with its target, so that both errors have the same weighting over time. That of the data is the loss of the flow;
    its target is random, while the teacher's is the mean that a perfect flow would learn.

    Args:
        flow: the loss of the flow.
        teacher_weight: weight of the error against the teacher.
        flow_weight: weight of the error against the data.
        guidance_scale: scale of the classifier-free guidance of the teacher's outputs; 1 for none.

    Raises:
        ValueError: if a number is out of range, or both weights are 0.
    """

    def __init__(
        self,
        flow: InterpolantLoss,
        teacher_weight: float = 1.0,
        flow_weight: float = 0.0,
        guidance_scale: float = 1.0,
    ):
        check_non_negative("teacher_weight", teacher_weight)
        check_non_negative("flow_weight", flow_weight)
        check_positive("guidance_scale", guidance_scale)
        if teacher_weight == flow_weight == 0:
            raise ValueError("teacher_weight=0, flow_weight=0: nothing would be learnt; give one of them a weight")
        self.flow = flow
        self.teacher_weight = teacher_weight
        self.flow_weight = flow_weight
        self.guidance_scale = guidance_scale

    def __call__(
        self,
        model_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        teacher: BoundNetwork,
        x_1: torch.Tensor,
        x_0: torch.Tensor,
        t: torch.Tensor,
        guided: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss of data x_1 (B, …).

        Args:
            model_fn: (x_t, t) -> the network's raw output, like x_t, with gradients.
            teacher: the trained network.
            x_1: data.
            x_0: noise, like x_1.
            t: times (B,).
            guided: (B,) bool, the samples to which the guidance applies: those whose label is not dropped.

        Returns:
            (B,) float32.
        """
        x_1 = x_1.float()
        x_t = self.flow.interpolant.interpolate(x_0, x_1, t)
        output = model_fn(x_t, t)
        check_output(output, x_1)
        loss = torch.zeros(len(x_1), device=x_1.device)
        if self.teacher_weight:
            expected = self.teacher_output(teacher, x_t, t, guided)
            difference = self.flow.weighted_difference(output.float(), expected, t)
            loss = loss + self.teacher_weight * difference.square().flatten(1).mean(1)
        if self.flow_weight:
            loss = loss + self.flow_weight * self.flow.of_output(output, x_0, x_1, t)
        return loss

    @torch.no_grad()
    def teacher_output(
        self, teacher: BoundNetwork, x_t: torch.Tensor, t: torch.Tensor, guided: torch.Tensor
    ) -> torch.Tensor:
        """What the teacher says at x_t (B, …): its raw output, like x_t, with guidance where `guided`."""
        output = teacher(x_t, t, t, slice(None))
        if self.guidance_scale == 1:
            return output
        weak = teacher(x_t, t, t, slice(None), unconditional=True)
        return torch.where(expand_like(guided, output), torch.lerp(weak, output, self.guidance_scale), output)
