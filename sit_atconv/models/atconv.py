"""ATConv: a depthwise convolution whose kernels are generated from the image (arXiv 2510.20092).

Shapes: B batch, N tokens in row-major order over the grid, (H, W) grid with H·W = N, C channels, k kernel size; the k²
taps of a kernel are in row-major order over (dy, dx).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.depthwise_conv import depthwise_conv, planes_depthwise_conv
from ..ops.linear import Linear, linear_gelu, linear_over_rows
from ..ops.pooling import pool_tokens
from ..utils.checks import check_count
from .arguments import check_dilation, check_kernel, check_kernel_groups


def activate(x: torch.Tensor, kernel_activation: str) -> torch.Tensor:
    """Apply one of the `KERNEL_ACTIVATIONS` of arguments.py."""
    if kernel_activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kernel_activation == "gelu_tanh" else "none")


class GroupedLinear(nn.Module):
    """A linear layer for each group of rows, the first rows being the first group: (B, C, in) -> (B, C, out).

    The weight (groups, out, in) starts as Xavier's of each group, the bias (groups, out) at 0.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(groups, out_features)) if bias else None
        for weight in self.weight.data:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], len(self.weight), -1, x.shape[2])  # (B, groups, C / groups, in)
        y = rows @ self.weight.transpose(1, 2)
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.flatten(1, 2)


class ATConv(nn.Module):
    """Attentive Convolution: the token mixer that replaces self-attention (arXiv 2510.20092).

    The image is summarised by k² pooled tokens, which become one k×k kernel per channel. Lateral inhibition subtracts a
    learned share of each kernel's mean, and the kernels are convolved with the projected tokens.

    Args:
        dim: number of channels C.
        kernel_size: k, odd.
        kernel_activation: "gelu_tanh" (the authors' SiT models), "silu" (their REPA models) or "gelu", the exact GELU
            (AttNet).
        kernel_pool: which tokens a pooled token averages: "strips" (k² consecutive runs in row-major order, as
            published) or "grid" (k×k tiles).
        bias: whether the four linear layers have biases.
        dilation: distance of neighbouring taps, in tokens. Several, such as [1, 2, 4], divide the channels into as many
            groups with one of these distances each: detail and reach in one layer, at no multiplication more.
        channel_gate: scale each channel of the result by 2·sigmoid of a linear map of the pooled tokens' mean, which is
            1 in a fresh model.
        average_branch: add to each channel a learned multiple of the projected tokens' mean over the image, as
            attention of equal weights would (arXiv 2504.21292). The multiple is 0 in a fresh model.
        kernel_groups: number of groups of channels, each with its own map from the k² activated context tokens to the
            taps, as heads of attention have; 1 is the published layer. It must divide C.

    Raises:
        ValueError: for a width below 1, an even kernel size, an unknown activation, an unknown pooling, a dilation
            below 1 or more of them than channels, or a number of groups that does not divide the channels.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        kernel_activation: str = "gelu_tanh",
        kernel_pool: str = "strips",
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        channel_gate: bool = False,
        average_branch: bool = False,
        kernel_groups: int = 1,
    ):
        super().__init__()
        check_count("dim", dim)
        check_kernel(kernel_size, kernel_activation, kernel_pool)
        self.kernel_size = kernel_size
        self.kernel_activation = kernel_activation
        self.kernel_pool = kernel_pool
        self.dilations = check_dilation("dilation", dilation, dim)
        check_kernel_groups(kernel_groups, dim)
        groups = len(self.dilations)
        self.group_sizes = [dim // groups + (i < dim % groups) for i in range(groups)]
        self.kernel_proj = Linear(dim, dim, bias)
        taps = kernel_size**2
        self.kernel_gen = (
            Linear(taps, taps, bias) if kernel_groups == 1 else GroupedLinear(kernel_groups, taps, taps, bias)
        )
        self.value_proj = Linear(dim, dim, bias)
        self.out_proj = Linear(dim, dim, bias)
        self.inhibition = nn.Parameter(torch.zeros(dim))
        self.channel_gate = Linear(dim, dim) if channel_gate else None
        if self.channel_gate is not None:
            nn.init.zeros_(self.channel_gate.weight)
            nn.init.zeros_(self.channel_gate.bias)
        self.average = nn.Parameter(torch.zeros(dim)) if average_branch else None

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, activation={self.kernel_activation}, pool={self.kernel_pool}, "
            f"dilation={self.dilations}"
        )

    def pool(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Average the tokens into k² context tokens, (B, N, C) -> (B, k², C)."""
        return pool_tokens(tokens, grid, self.kernel_size, self.kernel_pool)

    def kernels(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Generate the kernels, (B, N, C) -> (B, C, k²).

        The paper projects all N tokens and then pools. Both are linear and act on different axes, so pooling first
        gives the same kernels at k²/N of the cost.
        """
        return self._kernels_of(self.pool(tokens, grid))

    def _kernels_of(self, context: torch.Tensor) -> torch.Tensor:
        """The kernels (B, C, k²) that pooled tokens (B, k², C) become."""
        if torch.jit.is_scripting():  # the fast ways look at layers as Python objects
            g = activate(self.kernel_proj(context), self.kernel_activation)
            kernels = self.kernel_gen(g.transpose(1, 2)).transpose(1, 2)  # (B, k², C)
        else:
            kernels = self._generate(context)
        mean = kernels.mean(dim=1, keepdim=True)  # (B, 1, C)
        return torch.addcmul(kernels, torch.sigmoid(self.inhibition), mean, value=-1).transpose(1, 2)  # (B, C, k²)

    @torch.jit.unused
    def _generate(self, context: torch.Tensor) -> torch.Tensor:
        if self.kernel_activation == "gelu_tanh":
            g = linear_gelu(self.kernel_proj, context)
        else:
            g = activate(self.kernel_proj(context), self.kernel_activation)
        layer: Any = self.kernel_gen
        return linear_over_rows(layer, g)  # (B, k², C)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Mix tokens (B, N, C) that lie on `grid` = (H, W) with H·W = N. Returns (B, N, C)."""
        values = self.value_proj(tokens)
        context = self.pool(tokens, grid)  # (B, k², C)
        y = self._convolve(values, self._kernels_of(context), grid)
        if self.average is not None:
            y = y + self.average * values.mean(1, keepdim=True)  # (B, 1, C)
        if self.channel_gate is not None:
            y = y * (2 * torch.sigmoid(self.channel_gate(context.mean(1, keepdim=True))))  # (B, 1, C)
        return self.out_proj(y)

    def _convolve(self, values: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Convolve (B, N, C) with kernels (B, C, k²), each group of channels with its dilation."""
        if len(self.dilations) == 1:
            return self._convolve_group(values, kernels, grid, self.dilations[0])
        x, w = values.split(self.group_sizes, 2), kernels.split(self.group_sizes, 1)
        return torch.cat([self._convolve_group(x[i], w[i], grid, d) for i, d in enumerate(self.dilations)], dim=2)

    def _convolve_group(
        self, values: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int
    ) -> torch.Tensor:
        if torch.jit.is_scripting():
            return planes_depthwise_conv(values, kernels.to(values.dtype), grid, dilation)
        return depthwise_conv(values, kernels, grid, dilation)
