"""Moving averages of the weights: several exponential and power-function profiles side by side.

ema_profiles.py says how much each update weighs in them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .ema_profiles import profile_weights
from .sharding import local


def averaged_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is averaged of a model, by name: its parameters, and the running statistics of its BatchNorms."""
    return dict(model.named_parameters()) | {
        name: buffer for name, buffer in kept_buffers(model).items() if buffer.is_floating_point()
    }


def kept_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of a model that are part of its state, by name."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


class WeightAverages:
    """Averages of a model's tensors in float32, which are updated together.

    Args:
        parameters: the tensors, with copies of which the averages start. Parameters sharded by FSDP2 are averaged
            shard by shard.
        decays: decays of the exponential averages.
        stds: relative standard deviations of the power-function averages.

    Attributes:
        averages: one tensor per parameter for each average, by its name decay-… or std-…. The first average is the one
            that is sampled.

    Raises:
        ValueError: if a decay is outside [0, 1), if no power function has a std, if a profile is given twice, or if
            there is none.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], decays: Sequence[float], stds: Sequence[float] = ()):
        self.profiles = profile_weights(decays, stds)
        shards = [local(parameter.detach()) for parameter in parameters]
        self.averages = {name: [shard.float().clone() for shard in shards] for name in self.profiles}

    @property
    def first(self) -> list[torch.Tensor]:
        """The average that is sampled and saved as the pipeline."""
        return next(iter(self.averages.values()))

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.Tensor], step: int, applied: torch.Tensor) -> None:
        """Update the averages with the parameters after an optimizer step.

        Args:
            parameters: the parameters, in the order of the constructor.
            step: number of the step, counted from 1.
            applied: () 1 if the step was applied; 0 if it was skipped, so that no average moves. It is a tensor so that
                the host does not wait for the GPU.
        """
        shards = [local(parameter).float() for parameter in parameters]
        for name, average in self.averages.items():
            change = torch._foreach_sub(shards, average)
            torch._foreach_mul_(change, applied * self.profiles[name](step))
            torch._foreach_add_(average, change)

    @contextmanager
    def in_place_of(self, model: nn.Module, name: str | None = None) -> Iterator[None]:
        """Put an average in place of the model's tensors, and the model in eval mode, inside this context.

        Args:
            model: the model.
            name: name of the average; the first one if None.
        """
        shards = [local(tensor.detach()) for tensor in averaged_tensors(model).values()]
        trained = [shard.clone() for shard in shards]
        torch._foreach_copy_(shards, self.first if name is None else self.averages[name])
        was_training = model.training
        model.eval()
        try:
            yield
        finally:
            torch._foreach_copy_(shards, trained)
            model.train(was_training)
