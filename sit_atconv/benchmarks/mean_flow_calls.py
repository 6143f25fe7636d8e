"""The calls of the measurement "meanflow": training steps of MeanFlow, compared with those of a flow.

t=0 noise, t=1 data; a span is a step from t to s > t, whose target needs a directional derivative of the network.
B batch; x is (B, C, H, W), t and s (B,).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..flow.interpolants import Interpolant
from ..flow.mean_flow import MeanFlowLoss

SHARES = {", MeanFlow with 25 % spans": 0.25, ", MeanFlow with spans alone": 1.0}


class MeanFlowBatch(NamedTuple):
    """What a training step sees: data, noise, times, ends, labels, and the rows that are spans."""

    x_1: torch.Tensor
    x_0: torch.Tensor
    t: torch.Tensor
    s: torch.Tensor
    labels: torch.Tensor
    spans: torch.Tensor


def mean_flow_calls(
    nets: Mapping[str, nn.Module], inputs: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, str]]:
    """Training steps of each model without spans, which is that of a flow, and with two shares of spans.

    Args:
        nets: models of mean velocities by preset, compiled or not.
        inputs: latents (B, C, H, W), times (B,) and labels (B,).
        dtype: the precision; below float32, under autocast.

    Returns:
        The calls by the name of their row, and the row that each is compared with. A share that is no whole number of
        spans is left out.
    """
    calls: dict[str, Any] = {}
    baselines: dict[str, str] = {}
    for name, net in nets.items():
        for suffix, share in {"": 0.0, **SHARES}.items():
            number = share * len(inputs[0])
            if number == int(number):
                calls[name + suffix] = partial(mean_flow_step, net, make_batch(inputs, int(number)), dtype)
                baselines[name + suffix] = name
    return calls, baselines


def make_batch(inputs: tuple[torch.Tensor, ...], num_spans: int) -> MeanFlowBatch:
    """A batch whose first rows are spans, to the middle of what is left of the time."""
    latents, t, labels = inputs
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(latents)
    spans = torch.arange(num_spans, device=t.device)
    s = t.clone()
    s[:num_spans] = (1 + t[:num_spans]) / 2
    return MeanFlowBatch(latents, noise, t, s, labels, spans)


def mean_flow_step(net: nn.Module, batch: MeanFlowBatch, dtype: torch.dtype) -> None:
    """Forward and backward pass of MeanFlow's loss with the trainer's defaults; the gradients stay until the next."""
    module: Any = getattr(net, "_orig_mod", net)  # the model within torch.compile's wrapper

    def autocast() -> torch.autocast:
        return torch.autocast(batch.x_1.device.type, dtype, enabled=dtype != torch.float32)

    def predict(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        with autocast():
            return net(x, t, batch.labels, end_timestep=s, return_dict=False)[0]

    def target_network(
        x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, rows: torch.Tensor | slice, unconditional: bool = False
    ) -> torch.Tensor:
        with torch.no_grad(), autocast():
            return module(x, t, batch.labels[rows], end_timestep=s, return_dict=False)[0].to(x.dtype)

    net.zero_grad(set_to_none=True)
    loss = MeanFlowLoss(Interpolant("linear", "velocity"))
    loss(predict, target_network, batch.x_1, batch.x_0, batch.t, batch.s, batch.spans).mean().backward()
