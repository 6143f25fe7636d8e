"""How images are resized for a network that computes features.

Images are uint8 (H, W, C) and become float32 (3, height, width) in [0, 255]. clean-fid's resizing is the default: PIL's
bicubic filter on each channel in float32, not rounded (arXiv 2104.11222). The published statistics of the ADM
evaluations were made with TensorFlow 1's bilinear resizing instead.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from cleanfid.resize import make_resizer
from torch import Tensor

INCEPTION_SIZE = (299, 299)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A copy of the image with three channels; a grey one is repeated."""
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))  # a copy, which PyTorch may take over


def resize_clean(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resize an image to (height, width) as clean-fid does; grey images are repeated to three channels."""
    return torch.from_numpy(_clean_resizer(size)(as_rgb(image))).permute(2, 0, 1)  # (3, height, width)


@functools.lru_cache(maxsize=4)
def _clean_resizer(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    height, width = size
    return make_resizer("PIL", False, "bicubic", (width, height))


def resize_tensorflow(image: np.ndarray, size: tuple[int, int] = INCEPTION_SIZE) -> Tensor:
    """Resize an image to (height, width) as TensorFlow 1 does, which reads output pixel i at i · old / new.

    This does not align the centres of pixels, and does not blur when it shrinks an image.
    """
    x = torch.from_numpy(as_rgb(image)).permute(2, 0, 1).float()  # (3, H, W)
    for dim, new in ((1, size[0]), (2, size[1])):
        old = x.shape[dim]
        position = torch.arange(new) * (old / new)
        low = position.long()
        high = (low + 1).clamp(max=old - 1)
        share = (position - low).view(-1, 1) if dim == 1 else position - low
        x = x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share
    return x


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) on a device, with the channels last in memory, where convolutional networks are faster."""
    return x.to(device, memory_format=torch.channels_last)


def describe_resize(size: tuple[int, int]) -> str:
    """How reports describe `resize_clean`."""
    return f"clean-fid's: PIL bicubic in float32, to {size[0]}×{size[1]}"
