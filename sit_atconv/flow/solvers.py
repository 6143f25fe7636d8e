"""The solvers of the probability flow ODE, by name.

To add a Runge–Kutta method, add its table to `FIXED_STEP` or `ADAPTIVE` in tableaus.py: its name is then known here, to
`InterpolantODEScheduler` and to the command line.
"""

import torch

from .adaptive import solve_adaptive
from .callbacks import Callback, VelocityFn
from .choices import MULTISTEP
from .fixed_step import solve_fixed
from .multistep import solve_multistep
from .tableaus import ADAPTIVE, FIXED_STEP


def solve_ode(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    grid: torch.Tensor,
    solver: str,
    rtol: float,
    atol: float,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Solve dx/dt = velocity_fn(x, t) from grid[0] to grid[-1].

    Args:
        velocity_fn: (x, t) -> dx/dt; t is () for fixed steps and (B,) for adaptive ones.
        x: (B, …), the state at grid[0].
        grid: (steps + 1,) float64 on the CPU, uniform, increasing or decreasing. Adaptive solvers use its ends alone.
        solver: one of `ODE_SOLVERS`.
        rtol, atol: tolerances of the adaptive solvers; the others ignore them.
        callback: called as (step, t, x) after each step; see `after_step`.

    Returns:
        The state at grid[-1], or the state at which the callback stopped.

    Raises:
        RuntimeError: if an adaptive solver cannot proceed.
    """
    if solver in FIXED_STEP:
        return solve_fixed(velocity_fn, x, grid, FIXED_STEP[solver], callback)
    if solver in MULTISTEP:
        return solve_multistep(velocity_fn, x, grid, solver, callback)
    return solve_adaptive(velocity_fn, x, grid[0].item(), grid[-1].item(), ADAPTIVE[solver], rtol, atol, callback)
