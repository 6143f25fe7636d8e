"""How much each update weighs in a moving average of the weights: exponential and power-function profiles.

The power-function profile of EDM2 (arXiv 2312.02696, Section 3) weights the parameters of time τ by τ^γ. Its length is
given as σ_rel, the standard deviation of the profile relative to the training so far, so that 0.10 means the same for a
run of any length. Snapshots of two such averages give any other length after training (posthoc_ema.py).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

SHORT_START = 10  # an exponential average starts short: (1 + n) / (SHORT_START + n) bounds its decay after n updates


def power_exponent(std: float) -> float:
    """The exponent γ of the power function with relative standard deviation `std` (arXiv 2312.02696, Equation 125).

    Raises:
        ValueError: unless 1e-6 ≤ std < 0.2886, the deviation of the plain mean (γ = 0).
    """
    if not 1e-6 <= std < 12**-0.5:
        raise ValueError(f"std={std} must be between 1e-6 and {12**-0.5:.4f}, the deviation of the plain mean")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def exponential_weight(decay: float, step: int) -> float:
    """The weight of update `step`, counted from 1, when it enters an exponential average."""
    return 1 - (0.0 if step == 1 else min(decay, step / (SHORT_START + step - 1)))


def power_weight(std: float, step: int) -> float:
    """The weight of update `step`, counted from 1, when it enters a power-function average (Equation 127)."""
    return 1 - (1 - 1 / step) ** (power_exponent(std) + 1)


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
