"""Mean and standard deviation of each channel of encoded latents, added up shard by shard.

Latents are samples of the posteriors of the images: the variance of a channel is that of the means over images and
pixels, plus the mean of the variances of the posteriors. Sums are in float64 and do not depend on who encodes what.

n images, c latent channels, s latent side.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file


def shard_moments(tensors: dict[str, torch.Tensor]) -> dict:
    """Count, mean and summed squares of the distances from it, of each channel of a shard's latents.

    Args:
        tensors: content of the shard, of which "mean" and "std" (n, c, s, s) are used; "std" may be missing.

    Returns:
        {"count": pixels, "mean": [c numbers], "squares": [c numbers]}; no mean for a shard without images.
    """
    if "mean" not in tensors:
        return {"count": 0, "mean": [], "squares": []}
    x = tensors["mean"].double().transpose(0, 1).flatten(1)  # (c, n·s²)
    mean = x.mean(1)
    squares = (x - mean[:, None]).square().sum(1)
    if "std" in tensors:
        squares = squares + tensors["std"].double().square().sum((0, 2, 3))
    return {"count": x.shape[1], "mean": mean.tolist(), "squares": squares.tolist()}


def file_moments(file: Path) -> dict:
    """The moments of a shard that is finished."""
    return shard_moments({name: tensor for name, tensor in load_file(file).items() if name in ("mean", "std")})


def channel_statistics(shards: Iterable[dict]) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel over all shards.

    Args:
        shards: the moments of each shard.

    Returns:
        {"mean": [c numbers], "std": [c numbers]}; both empty if there are no images.
    """
    filled = [shard for shard in shards if shard["count"]]
    if not filled:
        return {"mean": [], "std": []}
    counts = torch.tensor([shard["count"] for shard in filled], dtype=torch.float64)[:, None]
    means = torch.tensor([shard["mean"] for shard in filled], dtype=torch.float64)  # (shards, c)
    squares = torch.tensor([shard["squares"] for shard in filled], dtype=torch.float64)
    mean = (counts * means).sum(0) / counts.sum()
    variance = (squares + counts * (means - mean).square()).sum(0) / counts.sum()
    return {"mean": mean.tolist(), "std": variance.sqrt().tolist()}
