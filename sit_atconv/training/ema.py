"""Moving averages of the weights: several exponential and power-function profiles side by side.

The power-function profile of EDM2 (arXiv 2312.02696, Section 3) weights the parameters of time τ by τ^γ. Its length is
given as σ_rel, the standard deviation of the profile relative to the training so far, so that 0.10 means the same for a
run of any length. Snapshots of two such averages give any other length after training (posthoc_ema.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from .sharding import local

SHORT_START = 10  # an exponential average starts short: (1 + n) / (SHORT_START + n) bounds its decay after n updates


def power_exponent(std: float) -> float:
    """The exponent γ of the power function with relative standard deviation `std` (arXiv 2312.02696, Equation 125).

    Raises:
        ValueError: unless 0 < std < 0.2886, the deviation of the plain mean (γ = 0).
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"std={std} must be between 0 and {12**-0.5:.4f}, the deviation of the plain mean")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def exponential_weight(decay: float, step: int) -> float:
    """The weight of update `step`, counted from 1, when it enters an exponential average."""
    return 1 - (0.0 if step == 1 else min(decay, step / (SHORT_START + step - 1)))


def power_weight(std: float, step: int) -> float:
    """The weight of update `step`, counted from 1, when it enters a power-function average (Equation 127)."""
    return 1 - (1 - 1 / step) ** (power_exponent(std) + 1)


class WeightAverages:
    """Averages of a model's parameters in float32, which are updated together.

    Args:
        parameters: the parameters, with copies of which the averages start. Parameters sharded by FSDP2 are averaged
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
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Put the first average in place of the model's weights, and the model in eval mode, inside this context."""
        shards = [local(parameter.detach()) for parameter in model.parameters()]
        trained = [shard.clone() for shard in shards]
        torch._foreach_copy_(shards, self.first)
        was_training = model.training
        model.eval()
        try:
            yield
        finally:
            torch._foreach_copy_(shards, trained)
            model.train(was_training)


def profile_weights(decays: Sequence[float], stds: Sequence[float]) -> dict[str, Callable[[int], float]]:
    """Return the function step -> weight of each average by name, exponential averages first.

    Raises:
        ValueError: for the same reasons as `WeightAverages`.
    """
    profiles: dict[str, Callable[[int], float]] = {}
    for decay in decays:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay} must be in [0, 1)")
        profiles[f"decay-{decay:g}"] = partial(exponential_weight, decay)
    for std in stds:
        try:
            power_exponent(std)
        except ValueError as error:
            raise ValueError(f"ema_stds={list(stds)}: {error}") from error
        profiles[f"std-{std:g}"] = partial(power_weight, std)
    if len(profiles) < max(1, len(decays) + len(stds)):
        raise ValueError(f"ema_decay={list(decays)}, ema_stds={list(stds)}: give at least one average, each once")
    return profiles
