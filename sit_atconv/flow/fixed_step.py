"""Runge–Kutta methods with fixed steps, for dx/dt = velocity(x, t).

x (B, …) float32 or float64. The whole batch shares one time, so t is a tensor of shape () on the CPU, in x's dtype: a
solve never has to wait for a GPU.
"""

import torch

from .callbacks import Callback, VelocityFn, after_step
from .tableaus import Tableau


def combine(weights: tuple[float, ...], velocities: list[torch.Tensor]) -> torch.Tensor:
    """The weighted sum of the velocities at the stages of a Runge–Kutta step."""
    terms = [weight * velocity for weight, velocity in zip(weights, velocities, strict=True) if weight != 0]
    return sum(terms[1:], start=terms[0])


def stage_times(tableau: Tableau, t: float, t_next: float) -> list[float]:
    """The times of the network calls in a step from t to t_next; stages at its end are at exactly t_next."""
    return [t_next if c == 1.0 else t + c * (t_next - t) for c in tableau.c]


def solve_fixed(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    grid: torch.Tensor,
    tableau: Tableau,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Step x along `grid`, with one Runge–Kutta step between neighbouring times.

    Args:
        velocity_fn: (x, t) -> dx/dt.
        x: (B, …), the state at grid[0].
        grid: (steps + 1,) float64 on the CPU, increasing or decreasing.
        tableau: one of `FIXED_STEP`.
        callback: called as (step, t, x) after each step; see `after_step`.

    Returns:
        The state at grid[-1], or the state at which the callback stopped.
    """
    times = grid.tolist()
    for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        dt = t_next - t
        velocities: list[torch.Tensor] = []
        for stage_t, a in zip(stage_times(tableau, t, t_next), tableau.a, strict=True):
            stage = x + dt * combine(a, velocities) if a else x
            velocities.append(velocity_fn(stage, torch.tensor(stage_t, dtype=x.dtype)))
        x = x + dt * combine(tableau.b, velocities)
        x, stopped = after_step(callback, i, t_next, x)
        if stopped:
            return x
    return x
