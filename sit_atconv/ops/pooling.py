"""Adaptive average pooling of tokens: the k² context tokens from which ATConv generates its kernels.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, C channels, k kernel size.
"""

import functools

import torch
import torch.nn.functional as F

from .eager import may_cache


def pool_tokens(tokens: torch.Tensor, grid: tuple[int, int], k: int, kernel_pool: str) -> torch.Tensor:
    """Average the tokens (B, N, C) on `grid` into k² context tokens (B, k², C).

    Args:
        tokens: (B, N, C).
        grid: (H, W) with H·W = N.
        k: kernel size.
        kernel_pool: "strips" averages k² runs of the row-major order, "grid" k×k tiles. Bins are those of PyTorch's
            adaptive pooling, which overlap if the sizes are not divisible.
    """
    # Adaptive pooling is fastest on CPUs. On GPUs it would transpose the tokens, and its gradient is not deterministic;
    # a matrix product reads them in their own layout, and works for any size in exported programs.
    if not torch.jit.is_scripting() and (tokens.device.type == "cuda" or torch.compiler.is_compiling()):
        return pool_by_product(tokens, grid, k, kernel_pool)
    planes = tokens.transpose(1, 2)  # (B, C, N)
    if kernel_pool == "strips":
        pooled = F.adaptive_avg_pool1d(planes, k * k)
    else:
        pooled = F.adaptive_avg_pool2d(planes.reshape(len(planes), -1, grid[0], grid[1]), (k, k)).flatten(2)
    return pooled.transpose(1, 2)


def pool_by_product(tokens: torch.Tensor, grid: tuple[int, int], k: int, kernel_pool: str) -> torch.Tensor:
    """`pool_tokens` as a product with a matrix of ones and zeros, and a division."""
    make_matrix = cached_pooling_matrix if may_cache(tokens) else pooling_matrix
    bins = make_matrix(grid, k, kernel_pool, tokens.device)  # (k², N)
    # Ones are exact in every dtype, while the weights of a mean would be off by up to 0.4 % in bfloat16.
    sums = (bins.to(tokens.dtype) @ tokens).to(torch.promote_types(tokens.dtype, torch.float32))  # (B, k², C)
    return (sums / bins.sum(dim=1, keepdim=True)).to(tokens.dtype)


def pooling_matrix(grid: tuple[int, int], k: int, kernel_pool: str, device: torch.device) -> torch.Tensor:
    """Which of the H·W tokens each of the k² bins averages: (k², H·W) bool."""
    if kernel_pool == "strips":
        return pooling_bins(grid[0] * grid[1], k * k, device)
    rows, columns = (pooling_bins(length, k, device) for length in grid)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (k, k, H, W) -> (k², H·W)


def pooling_bins(length: int, bins: int, device: torch.device) -> torch.Tensor:
    """Which positions each bin of 1-D adaptive pooling averages: (bins, length) bool.

    Bin i covers positions ⌊i·length/bins⌋ … ⌈(i+1)·length/bins⌉ − 1; bins overlap if `bins` does not divide `length`.
    """
    i = torch.arange(bins, device=device)[:, None]
    position = torch.arange(length, device=device)
    start, stop = i * length // bins, ((i + 1) * length + bins - 1) // bins  # (bins, 1)
    return (start <= position) & (position < stop)


@functools.lru_cache(maxsize=16)
def cached_pooling_matrix(*arguments) -> torch.Tensor:
    """`pooling_matrix`, kept between calls; only for tensors that `may_cache`."""
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        return pooling_matrix(*arguments)
