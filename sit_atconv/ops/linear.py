"""The linear layer of every block: `nn.Linear`, computed by oneDNN where that is faster (linear_onednn.py).

Shapes: x (…, in), weight (out, in), bias (out,) -> (…, out).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module

from .eager import is_eager
from .linear_onednn import (
    onednn_linear,
    onednn_linear_duals,
    onednn_linear_gelu,
    onednn_takes,
    onednn_takes_duals,
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `F.linear(x, weight, bias)`."""
    if onednn_takes(x, weight, bias):
        return onednn_linear(x, weight, bias)
    if onednn_takes_duals(x, weight, bias):
        return onednn_linear_duals(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            return linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def linear_gelu(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Compute `F.gelu(layer(x), approximate="tanh")`, as one operation if oneDNN can and no gradient is needed."""
    if not torch.is_grad_enabled() and runs_only_forward(layer) and onednn_takes(x, layer.weight, layer.bias):
        return onednn_linear_gelu(x, layer.weight, layer.bias)
    return F.gelu(layer(x), approximate="tanh")


def linear_over_rows(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Apply a layer to dimension 1 of x: (B, in, C) -> (B, out, C), W·x + b; without b if the layer has none.

    Multiplying from the left saves two transposed copies, and channels stay adjacent in memory.
    """
    if runs_only_forward(layer):
        if layer.bias is None:
            return layer.weight @ x
        return torch.baddbmm(layer.bias[:, None], layer.weight.expand(len(x), -1, -1), x)
    return layer(x.transpose(1, 2)).transpose(1, 2)


def runs_only_forward(layer: nn.Module) -> bool:
    """Whether `layer(x)` runs `Linear.forward` on plain weights and nothing else, so that the call may be bypassed.

    An adapter that took the layer's place, a subclass, a replaced `forward` and hooks, also those on all modules, must
    see the call.
    """
    return type(layer) is Linear and is_eager(layer.weight) and not (is_watched(layer) or all_modules_are_watched())


def is_watched(layer: nn.Module) -> bool:
    """Whether a call of the layer runs hooks of it, or a `forward` other than that of its class."""
    return bool(
        "forward" in layer.__dict__
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def all_modules_are_watched() -> bool:
    """Whether calls of modules run hooks that were registered on all of them."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
