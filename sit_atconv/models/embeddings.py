"""What the transformer embeds beside the patches: positions, times and class labels.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, D model width.
"""

import functools

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding

from ..ops.eager import is_eager, may_cache
from .presets import FREQUENCIES


def sincos_position_embedding(dim: int, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """The fixed 2-D sine-cosine embedding of MAE and DiT for any grid: (1, N, dim), float32.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines.
    """
    H, W = grid
    dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    # Made on the device: compiled code has no cache, and would copy it there in each call.
    omega = 10000.0 ** -(torch.arange(dim // 4, device=device, dtype=dtype) / (dim // 4))  # (D/4,)
    columns = torch.arange(W, device=device, dtype=dtype)[:, None] * omega  # (W, D/4)
    rows = torch.arange(H, device=device, dtype=dtype)[:, None, None] * omega  # (H, 1, D/4)
    column, row = (angles.expand(H, W, -1).flatten(0, 1) for angles in (columns, rows))  # (N, D/4)
    embedding = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)  # (N, D)
    return embedding[None].float()


_cached_position_embedding = functools.lru_cache(maxsize=16)(sincos_position_embedding)


def add_position_embedding(x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Add the sin-cos embedding of `grid` to tokens (B, N, D)."""
    # torch.compile ignores caches and warns of them; it makes one small kernel of the embedding.
    embed = _cached_position_embedding if may_cache(x) else sincos_position_embedding
    return x + embed(x.shape[-1], grid, x.device).to(x.dtype)


def embed_times(layer: TimestepEmbedding, times: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Embed times (…,) float32 -> (…, D) in this dtype, by their sinusoids and the two linear layers of `layer`."""
    frequencies = get_timestep_embedding(times.flatten(), FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
    return layer(frequencies.to(dtype)).unflatten(0, times.shape)


def check_labels(labels: torch.Tensor | None, batch_size: int, num_ids: int) -> torch.Tensor:
    """Return `labels` if they are usable: whole numbers (B,) in 0…num_ids − 1, or the weights (B, C) of C ids.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(labels, torch.Tensor) and labels.is_floating_point() and labels.ndim == 2:
        if labels.shape[0] != batch_size or labels.shape[1] > num_ids:
            raise ValueError(
                f"class_labels has shape {tuple(labels.shape)}, but the weights of classes must be ({batch_size}, "
                f"{num_ids}) or narrower"
            )
        return labels
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"class_labels must be a tensor of whole numbers, not {kind}")
    if labels.shape != (batch_size,):
        raise ValueError(f"class_labels has shape {tuple(labels.shape)}, but the batch has {batch_size} samples")
    # Values are checked only where they can be read for free: reading them off a GPU would stall it, and traced or fake
    # tensors have none. The pipeline and the data sets also check their labels.
    is_readable = labels.device.type == "cpu" and is_eager(labels)
    if is_readable and labels.numel() and not (0 <= labels.min() and labels.max() < num_ids):
        raise ValueError(f"class_labels={labels.tolist()} must be between 0 and {num_ids - 1}")
    return labels
