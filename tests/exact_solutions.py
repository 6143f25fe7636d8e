"""An ODE with a known solution, for tests of solvers."""

import torch

from sit_atconv.flow.interpolants import expand_like


def oscillating_growth(x, t):
    """dx/dt = x·cos(t), solved by x(t) = x(0)·exp(sin t)."""
    return x * torch.cos(expand_like(t, x))


def uniform_grid(start: float, end: float, steps: int) -> torch.Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)
