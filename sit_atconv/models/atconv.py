"""ATConv: a 3×3 depthwise convolution whose kernels are generated from the image (arXiv 2510.20092).

Shapes: B batch, N tokens in row-major order over the grid, (H, W) grid with H·W = N, C channels, K = kernel_size²
taps j in row-major order over (dy, dx).
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.depthwise_conv import depthwise_conv, naive_depthwise_conv  # noqa: F401
from ..ops.linear import PLAIN, Linear, gelu_of_linear, is_untouched
from ..utils.checks import check_choice

KERNEL_ACTIVATIONS = ("gelu_tanh", "silu")
KERNEL_POOLS = ("strips", "grid")


def pooling_bins(length: int, bins: int, device: torch.device) -> torch.Tensor:
    """Which places the bins of adaptive pooling cover: (bins, length) bool.

    Bin i covers the places ⌊i·length/bins⌋ … ⌈(i+1)·length/bins⌉ − 1: bins overlap where they do not fit.
    """
    i = torch.arange(bins, device=device)[:, None]
    place = torch.arange(length, device=device)
    start, stop = i * length // bins, ((i + 1) * length + bins - 1) // bins  # (bins, 1)
    return (start <= place) & (place < stop)


def pooling_matrix(grid: tuple[int, int], k: int, kernel_pool: str, device: torch.device) -> torch.Tensor:
    """Which tokens of a grid (H, W) the k² means of `ATConv.pool` are taken over: (k², H·W) bool."""
    if kernel_pool == "strips":
        return pooling_bins(grid[0] * grid[1], k * k, device)
    rows, columns = (pooling_bins(length, k, device) for length in grid)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (k, k, H, W) -> (k², H·W)


@functools.lru_cache(maxsize=16)
def cached_pooling_matrix(*arguments) -> torch.Tensor:
    """As `pooling_matrix`, made once: not while tracing, whose sizes and tensors stand for others."""
    with torch.inference_mode(False):  # later calls may train with it
        return pooling_matrix(*arguments)


class ATConv(nn.Module):
    """Attentive Convolution: the token mixer that replaces self-attention (arXiv 2510.20092).

    The image is summarised by k² pooled tokens; they become one k×k kernel a channel, from which a learned share of
    its own mean is taken away (lateral inhibition); that kernel is convolved with the projected tokens.

    Args:
        dim: channels C.
        kernel_size: k, odd.
        kernel_activation: "gelu_tanh" (the authors' SiT models) or "silu" (their REPA models).
        kernel_pool: what a pooled token covers. "strips": k² runs of the raster order, as published; "grid": k×k tiles.

    Raises:
        ValueError: for an even kernel size, an unknown activation or an unknown pooling.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        kernel_activation: str = "gelu_tanh",
        kernel_pool: str = "strips",
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd and positive, such as 3")
        check_choice("kernel_activation", kernel_activation, KERNEL_ACTIVATIONS)
        check_choice("kernel_pool", kernel_pool, KERNEL_POOLS)
        taps = kernel_size**2
        self.kernel_size = kernel_size
        self.kernel_activation = kernel_activation
        self.kernel_pool = kernel_pool
        self.kernel_proj = Linear(dim, dim)
        self.kernel_gen = Linear(taps, taps)
        self.value_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        self.inhibition = nn.Parameter(torch.zeros(dim))

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, activation={self.kernel_activation}, pool={self.kernel_pool}"

    def pool(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Average the tokens into k² context tokens: (B, N, C) -> (B, k², C)."""
        k = self.kernel_size
        # On CPUs adaptive pooling is the fastest. On GPUs it transposes, and its gradient is not deterministic; a
        # product reads tokens as they lie, and in exported programs it has any shape.
        tracing = torch.compiler.is_compiling()
        if tokens.device.type == "cuda" or tracing:
            cached = type(tokens) in PLAIN and not tracing  # not what is made in FakeTensorMode
            make = cached_pooling_matrix if cached else pooling_matrix
            bins = make(grid, k, self.kernel_pool, tokens.device)
            # Ones are exact in any dtype; weights of a mean would be off by up to 0.4 % in bfloat16.
            sums = (bins.to(tokens.dtype) @ tokens).to(torch.promote_types(tokens.dtype, torch.float32))  # (B, k², C)
            return (sums / bins.sum(dim=1, keepdim=True)).to(tokens.dtype)
        planes = tokens.transpose(1, 2)  # (B, C, N)
        if self.kernel_pool == "strips":
            pooled = F.adaptive_avg_pool1d(planes, k * k)
        else:
            pooled = F.adaptive_avg_pool2d(planes.unflatten(2, grid), k).flatten(2)
        return pooled.transpose(1, 2)

    def kernels(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Generate the kernels, (B, N, C) -> (B, C, k²).

        Pooling comes before the projection: both are linear and act on different axes, so this equals projecting all
        N tokens first, at k²/N of the cost.
        """
        context = self.pool(tokens, grid)  # (B, k², C)
        if self.kernel_activation == "gelu_tanh":
            g = gelu_of_linear(self.kernel_proj, context)
        else:
            g = F.silu(self.kernel_proj(context))
        if not torch.compiler.is_compiling() and is_untouched(self.kernel_gen):  # from the left, without a copy
            weight, bias = self.kernel_gen.weight, self.kernel_gen.bias
            kernels = torch.baddbmm(bias[:, None], weight.expand(len(g), -1, -1), g)  # (B, k², C)
        else:
            kernels = self.kernel_gen(g.transpose(1, 2)).transpose(1, 2)
        mean = kernels.mean(dim=1, keepdim=True)  # (B, 1, C)
        return torch.addcmul(kernels, torch.sigmoid(self.inhibition), mean, value=-1).transpose(1, 2)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Mix tokens (B, N, C) that lie on `grid` = (H, W), H·W = N. Returns (B, N, C)."""
        values = self.value_proj(tokens)
        y = depthwise_conv(values, self.kernels(tokens, grid), grid)
        return self.out_proj(y)
