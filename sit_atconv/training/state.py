"""The tensors of a run: gathered for a checkpoint, and restored from it."""

from collections.abc import Mapping

import torch
from torch import nn

from .checkpoints import Tensors
from .ema import WeightAverages, averaged_tensors
from .sharding import local, shard_like, whole, whole_like

AVERAGE_PREFIX = "ema-"  # of the files that hold averages
AVERAGES = "averages"  # key of state.json: the names of the averages, the sampled one first
OPTIMIZER = "optimizer"


def gather_average(model: nn.Module, average: list[torch.Tensor], main: bool) -> dict[str, torch.Tensor]:
    """Gather an average of the model as whole CPU tensors by name. Every process must call this.

    Args:
        model: the model.
        average: the average, one tensor or shard for each of `averaged_tensors`.
        main: whether this is the main process; the others return an empty dictionary.
    """
    gathered: dict[str, torch.Tensor] = {}
    for (name, parameter), shard in zip(averaged_tensors(model).items(), average, strict=True):
        tensor = whole_like(shard, parameter)
        if main:
            gathered[name] = tensor.cpu()
    return gathered


def gather_state(
    modules: Mapping[str, nn.Module], averages: WeightAverages, optimizer: torch.optim.Optimizer, main: bool
) -> Tensors:
    """Gather everything that a run needs to continue, as whole CPU tensors.

    Every process must call this, because sharded tensors are put together one by one.

    Args:
        modules: the trained modules by the name of their file. "model" is the one whose tensors are averaged.
        averages: the averages of the model's tensors.
        optimizer: the optimizer of all modules' parameters.
        main: whether this is the main process; the others return empty dictionaries.
    """
    gathered: dict[str, dict[str, torch.Tensor]] = {part: {} for part in (*modules, OPTIMIZER)}
    for part, module in modules.items():
        for name, value in module.state_dict().items():
            tensor = whole(value)
            if main:
                gathered[part][name] = tensor.cpu()
        for name, parameter in module.named_parameters():
            for slot, value in optimizer.state[parameter].items():
                tensor = whole(value)
                if main:
                    gathered[OPTIMIZER][f"{part}.{name}|{slot}"] = tensor.cpu()
    for profile, average in averages.averages.items():
        gathered[f"{AVERAGE_PREFIX}{profile}"] = gather_average(modules["model"], average, main)
    return gathered


def restore_state(
    tensors: Tensors, modules: Mapping[str, nn.Module], averages: WeightAverages, optimizer: torch.optim.Optimizer
) -> None:
    """Restore what `gather_state` gathered, on any number of processes.

    Raises:
        ValueError: if the tensors belong to another model or to other averages; nothing is changed in that case.
    """
    parameters = {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}
    expected = {part: _shapes(module.state_dict()) for part, module in modules.items()}
    expected |= {
        f"{AVERAGE_PREFIX}{profile}": _shapes(averaged_tensors(modules["model"])) for profile in averages.averages
    }
    if missing := sorted((expected.keys() | {OPTIMIZER}) ^ tensors.keys()):
        raise ValueError(f"the checkpoint and this run differ in: {', '.join(missing)}")
    for part, shapes in expected.items():
        if _shapes(tensors[part]) != shapes:
            raise ValueError(f"{part}.safetensors of the checkpoint holds another model")
    optimizer_state: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors[OPTIMIZER].items():
        name, _, slot = key.rpartition("|")
        optimizer_state.setdefault(name, {})[slot] = value
    if optimizer_state and optimizer_state.keys() != parameters.keys():
        raise ValueError(f"{OPTIMIZER}.safetensors of the checkpoint holds another model")

    with torch.no_grad():
        for part, module in modules.items():
            for name, value in module.state_dict().items():
                value.copy_(shard_like(tensors[part][name], value))
        for profile, average in averages.averages.items():
            for (name, parameter), shard in zip(averaged_tensors(modules["model"]).items(), average, strict=True):
                shard.copy_(local(shard_like(tensors[f"{AVERAGE_PREFIX}{profile}"][name], parameter)))
        for name, slots in optimizer_state.items():
            parameter = parameters[name]
            optimizer.state[parameter] = {
                slot: shard_like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
                for slot, value in slots.items()
            }


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
