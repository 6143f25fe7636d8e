"""Pictures for people: grids of samples."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate
from torchvision.utils import save_image


def save_grid(images: torch.Tensor, file: str | Path, columns: int, min_size: int = 32) -> None:
    """Write images (B, C, H, W) in [0, 1] as one PNG, `columns` a row; tiny ones are enlarged to `min_size` pixels."""
    factor = -(-min_size // images.shape[-1])
    if factor > 1:
        images = interpolate(images, scale_factor=factor, mode="nearest")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_image(images.float().cpu(), file, nrow=columns, padding=max(2, factor))
