"""A depthwise convolution and its activation in one pass on x86 CPUs, by oneDNN.

Shapes: x (B, C, H, W) in the channels-last layout, weight (C, 1, k, k), bias (C,) -> (B, C, H, W).
"""

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from .linear_onednn import HAS_ONEDNN_PRODUCT

HAS_ONEDNN_CONVOLUTION = HAS_ONEDNN_PRODUCT and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def activate_(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply "gelu" (exact) or "silu" in place."""
    return F.silu(x, inplace=True) if activation == "silu" else torch.ops.aten.gelu_(x)


def depthwise_conv_activation(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int, activation: str
) -> torch.Tensor:
    """Convolve each channel, keeping the size, and apply "gelu" (exact) or "silu". Has no derivative."""
    padding = weight.shape[-1] // 2 * dilation
    if HAS_ONEDNN_CONVOLUTION and torch.backends.mkldnn.enabled:
        name, rule = ("swish", "") if activation == "silu" else ("gelu", "none")
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [padding] * 2, [1, 1], [dilation] * 2, x.shape[1], name, [], rule
        )
    return activate_(F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1]), activation)


if HAS_ONEDNN_CONVOLUTION and torch.ops.mkldnn._convolution_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _(x_shape, weight_shape, *options, out_shape, **others) -> int:
        return conv_flop_count(x_shape, weight_shape, out_shape)
