"""Whole tensors and their shards: FSDP2 keeps parameters as DTensors, everything else as plain ones."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor, sharing its memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor. Every process must call it where the tensor is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_like(shard: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The whole tensor of which `shard` is this process's part, sharded as `reference` is."""
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
    """The counterpart of `reference`, sharded and placed as it is, of a whole tensor that every process holds."""
    tensor = tensor.to(reference.device)
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)
