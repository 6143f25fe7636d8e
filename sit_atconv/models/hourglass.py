"""Two levels of resolution: what connects the blocks of an hourglass to those on a grid of half the height and width.

The image is laid out by the blocks in the middle, whose tokens stand for 2×2 of the others, as in the U-Nets of earlier
diffusion models and in hourglass transformers (arXiv 2401.11605). Detail does not pass through them: tokens of full
resolution stay where they are, and the middle adds to them.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, D model width, M width in the middle.
"""

from typing import cast

import torch
from torch import nn

from ..ops.linear import Linear
from .presets import coarse_grid


def join_tiles(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Join the tokens of each 2×2 tile, (B, N, D) -> (B, ⌈H/2⌉·⌈W/2⌉, 4·D).

    Where H or W is odd, the last row or column is repeated.
    """
    H, W = coarse_grid(grid)
    x = tokens.unflatten(1, grid)  # (B, H, W, D)
    x = with_places(with_places(x, 1, 2 * H), 2, 2 * W)
    x = x.unflatten(2, (W, 2)).unflatten(1, (H, 2))  # (B, H/2, 2, W/2, 2, D)
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


def part_tiles(tiles: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The inverse of `join_tiles`: (B, ⌈H/2⌉·⌈W/2⌉, 4·D) -> (B, N, D)."""
    x = tiles.unflatten(2, (2, 2, -1)).unflatten(1, coarse_grid(grid))  # (B, H/2, W/2, 2, 2, D)
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, H, W, D), or one row or column more
    return with_places(with_places(x, 1, grid[0]), 2, grid[1]).flatten(1, 2)


def with_places(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Cut a dimension to `size`, or repeat its last entry up to it. An exported program leaves both open."""
    given = x.shape[dim]
    if isinstance(given, int) and given == size:
        return x
    return x.index_select(dim, torch.arange(size, device=x.device).clamp(max=given - 1))


class Hourglass(nn.Module):
    """What is done to the tokens between two blocks: merging, splitting, and long skips.

    Before the first block in the middle, 2×2 tokens become one, by a linear layer of all their channels. After the last
    one, a linear layer makes 2×2 tokens of each again, and these are added to the tokens as they were before merging. A
    long skip joins each block after the middle with its counterpart before it, in reverse order: a linear layer of what
    the counterpart put out is added to the block's input.

    A linear map of both operands, concatenated, would cost twice as much: in a residual stream, the operand that stays
    needs no map of its own. Splitting and long skips start at 0, so that a fresh model is one without its middle.

    Args:
        dim: D.
        middle_dim: M.
        middle: the indices of the blocks in the middle, which have as many blocks before as after them.
    """

    def __init__(self, dim: int, middle_dim: int, middle: range):
        super().__init__()
        self.middle = middle
        self.merge = Linear(4 * dim, middle_dim)
        self.split = Linear(middle_dim, 4 * dim)
        self.skips = nn.ModuleList(Linear(dim, dim) for _ in range(middle.start))

    @property
    def without_effect(self) -> list[nn.Linear]:
        """The layers that start at 0."""
        return cast("list[nn.Linear]", [self.split, *self.skips])

    def before_block(
        self, index: int, x: torch.Tensor, grid: tuple[int, int], kept: list[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the tokens that a block takes, and their grid.

        Args:
            index: the number of the block.
            x: what the block before it put out; for the first one, the embedded patches (B, N, D).
            grid: (H, W) of the whole model.
            kept: for this forward pass, the outputs of blocks before the middle that skips have not used yet.
        """
        start, stop = self.middle.start, self.middle.stop
        if 0 < index <= start:
            kept.append(x)
        if index == start:
            x = self.merge(join_tiles(x, grid))  # (B, N/4, M)
        if index == stop:
            x = added(kept[-1], part_tiles(self.split(x), grid))
        if index >= stop:
            x = added(x, self.skips[index - stop](kept.pop()))
        return x, coarse_grid(grid) if index in self.middle else grid


def added(x: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """x + branch, where the branch's layer is: parts of a model may be on several devices."""
    return x.to(branch.device) + branch
