"""Moving averages of the weights: several exponential and power-function profiles at once, and other lengths later.

The power-function profile of EDM2 (arXiv 2312.02696, Section 3) weights the parameters of time τ by τ^γ. Its length is
given as σ_rel, the standard deviation of the profile relative to the training so far, so that 0.10 means the same for a
run of any length. Snapshots of two such averages, taken along the run, give any other length after it: a linear
combination of the snapshots whose profile is closest to the one wanted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .checkpoints import checkpoint_steps, read_checkpoint, verify_checkpoint
from .sharding import local

WARMUP = 10  # an exponential average starts short: (1 + n) / (WARMUP + n) bounds its decay after n updates


def power_exponent(std: float) -> float:
    """The exponent γ of the power function with relative standard deviation `std` (arXiv 2312.02696, Equation 125).

    Raises:
        ValueError: unless 0 < std < 0.2886, the deviation of the plain mean (γ = 0).
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"std={std} must lie between 0 and {12**-0.5:.4f}, the deviation of the plain mean")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def exponential_weight(decay: float, step: int) -> float:
    """How much of update `step`, counted from 1, enters an exponential average."""
    return 1 - (0.0 if step == 1 else min(decay, step / (WARMUP + step - 1)))


def power_weight(std: float, step: int) -> float:
    """How much of update `step`, counted from 1, enters a power-function average (Equation 127)."""
    return 1 - (1 - 1 / step) ** (power_exponent(std) + 1)


class WeightAverages:
    """Averages of a model's parameters in float32, updated together.

    Args:
        parameters: the averages start as copies of these; sharded ones (FSDP2) are averaged shard by shard.
        decays: of the exponential averages.
        stds: relative standard deviations of the power-function averages.

    Attributes:
        averages: by name, decay-… and std-…, one tensor for each parameter. The first one is what is sampled.

    Raises:
        ValueError: for a decay outside [0, 1), a std that no power function has, or no profile at all.
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
        """Take in the parameters after update `step`, counted from 1.

        Args:
            parameters: in the order of the constructor.
            step: of the run.
            applied: () 1 where the update was applied, 0 where it was skipped and no average moves. A tensor, so that
                the host need not wait for the GPU to know.
        """
        shards = [local(parameter).float() for parameter in parameters]
        for name, average in self.averages.items():
            change = torch._foreach_sub(shards, average)
            torch._foreach_mul_(change, applied * self.profiles[name](step))
            torch._foreach_add_(average, change)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Within it, the model holds the first average and is in eval mode."""
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


def profile_weights(decays: Sequence[float], stds: Sequence[float]) -> dict:
    """By name, the function step -> weight of each average.

    Raises:
        ValueError: as `WeightAverages`.
    """
    profiles = {}
    for decay in decays:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay} must be in [0, 1)")
        profiles[f"decay-{decay:g}"] = lambda step, decay=decay: exponential_weight(decay, step)
    for std in stds:
        try:
            power_exponent(std)
        except ValueError as error:
            raise ValueError(f"ema_stds={list(stds)}: {error}") from error
        profiles[f"std-{std:g}"] = lambda step, std=std: power_weight(std, step)
    if len(profiles) < max(1, len(decays) + len(stds)):
        raise ValueError(f"ema_decay={list(decays)}, ema_stds={list(stds)}: give at least one profile, each once")
    return profiles


def reconstruction_weights(steps: Sequence[int], stds: Sequence[float], std: float, step: int) -> np.ndarray:
    """The linear combination of stored averages whose profile is closest to another one (Algorithm 3).

    Args:
        steps, stds: of the stored averages, (n,) each.
        std, step: of the profile wanted.

    Returns:
        (n,) float64, least squares over all of the training up to `step`.
    """
    t, gamma = np.array(steps, dtype=np.float64), np.array([power_exponent(value) for value in stds])
    gram = _profile_products(t[:, None], gamma[:, None], t[None], gamma[None])
    target = _profile_products(t, gamma, float(step), power_exponent(std))
    return np.linalg.lstsq(gram, target, rcond=1e-12)[0]  # neighbouring snapshots are almost the same


def _profile_products(t_a, gamma_a, t_b, gamma_b):
    """∫ p_a(τ) p_b(τ) dτ of p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t] (Equation 133)."""
    t = np.minimum(t_a, t_b)  # in ratios, since t^γ overflows
    return (
        (gamma_a + 1)
        * (gamma_b + 1)
        / (gamma_a + gamma_b + 1)
        * (t / t_a) ** gamma_a
        * (t / t_b) ** gamma_b
        * (t / (t_a * t_b))
    )


def reconstruct(folder: Path, std: float, step: int | None = None) -> dict[str, torch.Tensor]:
    """The weights that a power-function average with this `std` would have had, from the snapshots in `folder`.

    Args:
        folder: ema/ of a run with `ema_stds`.
        std: relative standard deviation wanted; between those that were tracked it is most exact.
        step: the last update averaged over, the step of a snapshot; the newest where None.

    Raises:
        ValueError: for no snapshots, one that is broken, a step without one, or a std that no power function has.
    """
    power_exponent(std)
    snapshots = dict(checkpoint_steps(Path(folder)))
    if not snapshots:
        raise ValueError(f"{folder} holds no snapshots; train with --ema_stds '[0.05, 0.1]' to have some")
    step = max(snapshots) if step is None else step
    if step not in snapshots:
        raise ValueError(f"step={step}: {folder} holds no snapshot of it; choose one of {sorted(snapshots)}")
    used = [at for at in snapshots if at <= step]
    stds: list[float] = []
    stored: list[tuple[int, str]] = []
    for at in used:
        verify_checkpoint(snapshots[at])
        for file in sorted(snapshots[at].glob("std-*.safetensors")):
            stored.append((at, file.stem))
            stds.append(float(file.stem.removeprefix("std-")))
    weights = reconstruction_weights([at for at, _ in stored], stds, std, step)
    total: dict[str, torch.Tensor] = {}
    for at in used:
        tensors, _ = read_checkpoint(snapshots[at])
        for (_, part), weight in ((key, w) for key, w in zip(stored, weights, strict=True) if key[0] == at):
            _add(total, tensors[part], float(weight))
    return {name: value.float() for name, value in total.items()}


def _add(total: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor], weight: float) -> None:
    for name, value in values.items():
        # float64: large weights of opposite signs cancel
        total[name] = total.get(name, 0) + weight * value.double()
