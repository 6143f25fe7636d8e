"""Whole tensors and their shards. FSDP2 keeps parameters as DTensors; without it, all tensors are plain."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a tensor, sharing its memory, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor. If it is sharded, every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_like(shard: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor of which `shard` is this process's part, if it is sharded like `reference`."""
    if not isinstance(reference, DTensor):
        return shard
    return DTensor.from_local(
        shard,
        reference.device_mesh,
        reference.placements,
        shape=reference.shape,
        stride=reference.stride(),
    ).full_tensor()


def shard_like(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Shard and place a whole tensor, which every process holds, like `reference`."""
    tensor = tensor.to(reference.device)
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)
