"""Grids of samples as one picture."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate
from torchvision.utils import save_image

from .files import staged


def save_grid(images: torch.Tensor, file: str | Path, columns: int, min_size: int = 32) -> None:
    """Write images (B, C, H, W) in [0, 1] as one PNG, which is complete as soon as it exists.

    Args:
        images: the images, row by row.
        file: the PNG to write or replace; missing folders are created.
        columns: images per row.
        min_size: smaller images are enlarged, by a whole factor, to at least this many pixels.
    """
    factor = -(-min_size // images.shape[-1])
    if factor > 1:
        images = interpolate(images, scale_factor=factor, mode="nearest")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with staged(Path(file)) as staging:  # whose name has the same ending, which chooses the format
        save_image(images.float().cpu(), staging, nrow=columns, padding=max(2, factor))
