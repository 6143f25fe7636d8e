"""Post-hoc EMA: power-function averages of any length, reconstructed after training from snapshots of others.

The paper is EDM2 (arXiv 2312.02696, Section 3): a linear combination of stored averages whose profile is closest to the
one wanted, by least squares.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .checkpoints import checkpoint_steps, read_checkpoint, verify_checkpoint
from .ema_profiles import power_exponent


def reconstruction_weights(steps: Sequence[int], stds: Sequence[float], std: float, step: int) -> np.ndarray:
    """Compute the linear combination of stored averages whose profile is closest to another profile (Algorithm 3).

    Args:
        steps: (n,) steps of the stored averages.
        stds: (n,) relative standard deviations of the stored averages.
        std: relative standard deviation of the wanted profile.
        step: last step of the wanted profile.

    Returns:
        (n,) float64 coefficients, the least-squares solution over the whole training up to `step`.
    """
    t, gamma = np.array(steps, dtype=np.float64), np.array([power_exponent(value) for value in stds])
    gram = _profile_products(t[:, None], gamma[:, None], t[None], gamma[None])
    target = _profile_products(t, gamma, float(step), power_exponent(std))
    return np.linalg.lstsq(gram, target, rcond=1e-12)[0]  # neighbouring snapshots are almost collinear


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
    """Reconstruct the weights that a power-function average with another `std` would have had, from snapshots.

    Args:
        folder: the folder ema/ of a run with `ema_stds`.
        std: the wanted relative standard deviation. Values between those that were tracked are most exact.
        step: the last step that is averaged over, which must be that of a snapshot; the newest one if None.

    Returns:
        The weights by name, in float32.

    Raises:
        ValueError: if there are no snapshots or none of this step, if one is damaged, or if no power function has this
            std.
    """
    power_exponent(std)
    snapshots = dict(checkpoint_steps(Path(folder)))
    if not snapshots:
        raise ValueError(f"{folder} holds no snapshots; a run writes them with --ema_stds '[0.05, 0.1]'")
    step = max(snapshots) if step is None else step
    if step not in snapshots:
        raise ValueError(f"step={step}: {folder} holds no snapshot of this step; choose one of {sorted(snapshots)}")
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
        change = weight * value.double()  # float64, because large weights of opposite signs cancel
        total[name] = total[name] + change if name in total else change
