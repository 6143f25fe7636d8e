"""What is given to a pipeline, as the tensors that it works with.

B images, C channels; images (B, C, H, W) in [0, 1], latents (B, C, h, w).
"""

from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from sit_atconv.utils.checks import check_count

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels


def check_sizes(height: int, width: int, vae_scale_factor: int, patch_size: int) -> None:
    """Raise ValueError unless images of this height and width, in pixels, consist of whole patches."""
    multiple = vae_scale_factor * patch_size
    for field, size in (("height", height), ("width", width)):
        check_count(field, size)
        if size % multiple:
            raise ValueError(
                f"{field}={size} must be divisible by {multiple} (VAE factor {vae_scale_factor} × patch size "
                f"{patch_size})"
            )


def latents_from(latents: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the noise that a caller hands over, a tensor or an array of NumPy, as a tensor.

    Raises:
        ValueError: if it is something else, of another shape, not of floating point, or not finite.
    """
    if isinstance(latents, np.ndarray) and latents.dtype.kind == "f":
        latents = torch.from_numpy(np.ascontiguousarray(latents))
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = getattr(latents, "dtype", type(latents).__name__)
        raise ValueError(f"latents must be a tensor or an array of floating-point numbers, not {kind}")
    _check_values("latents", latents)
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents has shape {tuple(latents.shape)}, but must have the shape {shape}")
    if not latents.isfinite().all():
        raise ValueError("latents holds NaN or infinity; give finite numbers, or leave it out to draw noise")
    return latents


def _check_values(field: str, tensor: torch.Tensor) -> None:
    """Raise ValueError for a sparse tensor, and for one without values."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"{field} must be a dense tensor with values; it is {tensor.layout} on {tensor.device}")


def images_from(images: Any, channels: int, field: str = "images") -> torch.Tensor:
    """Return images as a tensor (B, channels, H, W) in [0, 1].

    Args:
        images: what a pipeline returns for output_type "pt", "np" or "pil": (B, C, H, W) or (B, H, W, C) in [0, 1], or
            pictures of one size; one picture is a batch of one.
        channels: the number of channels that the model has; pictures are converted to it.
        field: the name of the argument, for messages.

    Raises:
        ValueError: if the images are of another kind, shape or range.
    """
    pictures = images if isinstance(images, (list, tuple)) else [images]
    if pictures and all(isinstance(picture, Image) for picture in pictures):
        tensor = _from_pictures(list(pictures), channels, field)
    elif isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise ValueError(f"{field} has shape {images.shape}; an array must be (B, H, W, C)")
        tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    elif isinstance(images, torch.Tensor):
        tensor = images
        _check_values(field, tensor)
    else:
        kind = type(images).__name__
        raise ValueError(f"{field} is a {kind}; give a tensor (B, C, H, W), an array (B, H, W, C), or pictures (PIL)")
    if tensor.ndim != 4 or tensor.shape[1] != channels or not tensor.numel():
        raise ValueError(f"{field} has shape {tuple(tensor.shape)}; a tensor must be (B, {channels}, H, W)")
    if tensor.dtype == torch.bool:
        tensor = tensor.float()
    if not tensor.is_floating_point():
        remedy = f"{field} / 255" if tensor.max() > 1 else f"{field}.float()"
        raise ValueError(f"{field} is {tensor.dtype}; give floating-point numbers in [0, 1], such as {remedy}")
    low, high = tensor.min().item(), tensor.max().item()
    if not 0 <= low <= high <= 1:  # NaN, too
        remedy = (
            f"({field} + 1) / 2" if -1 <= low and high <= 1 else f"{field} / 255" if high <= 255 and low >= 0 else ""
        )
        raise ValueError(
            f"{field}: the values lie in [{low:.3g}, {high:.3g}], but must lie in [0, 1]; "
            + (f"give {remedy}" if remedy else "give what output_type='pt' returns")
        )
    return tensor


def _from_pictures(pictures: list[Image], channels: int, field: str) -> torch.Tensor:
    if channels not in PIL_MODES:
        raise ValueError(f"{field}: no picture has {channels} channels, as this model needs; give a tensor")
    if len(sizes := sorted({picture.size for picture in pictures})) > 1:
        raise ValueError(f"{field} have the sizes {sizes}; give those of one size at a time")
    arrays = [np.asarray(picture.convert(PIL_MODES[channels]), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).reshape(len(arrays), *arrays[0].shape[:2], channels).permute(0, 3, 1, 2)
