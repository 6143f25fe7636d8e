"""Adams methods on a uniform grid, by torchdiffeq: they reuse the velocities of earlier steps."""

import importlib

import torch

from .callbacks import Callback, VelocityFn, after_step

MULTISTEP_ORDER = 4  # Adams–Bashforth of torchdiffeq's default order, 12, is stable at no step size of practical use


class LeaveSolve(Exception):  # noqa: N818
    """Ends torchdiffeq's loop after a callback that stopped the solve or replaced the state."""

    def __init__(self, x: torch.Tensor, stopped: bool):
        super().__init__()
        self.x = x
        self.stopped = stopped


class WatchedVelocity:
    """The velocity in torchdiffeq's order of arguments, with a callback after each step.

    Args:
        velocity_fn: (x, t) -> dx/dt.
        callback: called as (step, t, x); see `after_step`.
        first_step: index of the first step.
    """

    def __init__(self, velocity_fn: VelocityFn, callback: Callback | None, first_step: int):
        self.velocity_fn = velocity_fn
        self.callback = callback
        self.first_step = first_step
        self.num_steps = 0  # that have begun

    def __call__(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.velocity_fn(x, t)

    def callback_step(self, t: torch.Tensor, x: torch.Tensor, dt: torch.Tensor) -> None:
        """torchdiffeq calls this before each step."""
        if self.num_steps:
            shown, stopped = after_step(self.callback, self.first_step + self.num_steps - 1, t.item(), x)
            if stopped or shown is not x:
                raise LeaveSolve(shown, stopped)
        self.num_steps += 1


def solve_multistep(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    grid: torch.Tensor,
    method: str,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Step x along a uniform grid with one of torchdiffeq's multistep methods.

    Args:
        velocity_fn: (x, t) -> dx/dt.
        x: (B, …), the state at grid[0].
        grid: (steps + 1,) float64 on the CPU, uniform.
        method: one of `MULTISTEP`.
        callback: called as (step, t, x) after each step; see `after_step`. If it replaces the state, the method starts
            again from the replacement, since the velocities of earlier steps no longer apply.

    Returns:
        The state at grid[-1], or the state at which the callback stopped.
    """
    torchdiffeq = importlib.import_module("torchdiffeq")  # pipeline folders need it for these methods alone
    step_size = abs((grid[1] - grid[0]).item()) * (1 + 1e-6)  # slightly longer, so that rounding adds no step
    options = {"step_size": step_size, "max_order": MULTISTEP_ORDER}
    start = 0  # index into the grid of the state x
    while True:
        watched = WatchedVelocity(velocity_fn, callback, start)
        try:
            x = torchdiffeq.odeint(watched, x, grid[[start, -1]].to(x), method=method, options=options)[-1]
        except LeaveSolve as leave:
            x, start = leave.x, start + watched.num_steps
            if leave.stopped:
                return x
        else:
            return after_step(callback, len(grid) - 2, grid[-1].item(), x)[0]
