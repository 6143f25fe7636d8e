"""Runge–Kutta solvers for dx/dt = velocity(x, t) on batches of images, with fixed or with per-image adaptive steps.

x (B, …) float32 or float64. Times handed to `velocity_fn` are tensors like x's dtype: () on the CPU where the whole
batch shares one, so that they cost no synchronisation with a GPU, else (B,) on x's device.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .interpolants import expand_like

VelocityFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Callback = Callable[[int, float, torch.Tensor], torch.Tensor | None]

MAX_STEPS = 10_000
MIN_STEP = 1e-7


class Tableau(NamedTuple):
    """Coefficients of an explicit Runge–Kutta method, in Butcher's notation.

    b_error is b minus the weights of the embedded lower-order solution; its last entry belongs to the velocity at the
    step's end.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_error: tuple[float, ...] | None = None


FIXED_STEP = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "heun3": Tableau(3, (0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    # Kutta's 3/8 rule, as torchdiffeq's rk4: smaller error than the classic one at the same cost
    "rk4": Tableau(
        4,
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}

ADAPTIVE = {
    "adaptive_heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2), (-1 / 2, 1 / 2, 0.0)),
    # Bogacki and Shampine, 1989
    "bosh3": Tableau(
        3,
        (0.0, 1 / 2, 3 / 4),
        ((), (1 / 2,), (0.0, 3 / 4)),
        (2 / 9, 1 / 3, 4 / 9),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    ),
    # Dormand and Prince, 1980
    "dopri5": Tableau(
        5,
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        (
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
    ),
}


def _combine(weights: tuple[float, ...], velocities: list[torch.Tensor]) -> torch.Tensor:
    return sum(w * v for w, v in zip(weights, velocities, strict=True) if w != 0)


def solve_fixed(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    grid: torch.Tensor,
    tableau: Tableau,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Step x along `grid`, one Runge–Kutta step between neighbours.

    Args:
        velocity_fn: (x, t) -> dx/dt.
        x: (B, …), the state at grid[0].
        grid: (steps + 1,) float64 on the CPU, increasing or decreasing.
        tableau: one of `FIXED_STEP`.
        callback: called after each step with (index, t, x); what it returns, if not None, replaces x.
            StopIteration raised in it ends the solve.

    Returns:
        The state at grid[-1], or where the callback stopped.
    """
    times = grid.tolist()
    for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        dt = t_next - t
        velocities = []
        for c, a in zip(tableau.c, tableau.a, strict=True):
            stage = x + dt * _combine(a, velocities) if a else x
            stage_t = t_next if c == 1.0 else t + c * dt
            velocities.append(velocity_fn(stage, torch.tensor(stage_t, dtype=x.dtype)))
        x = x + dt * _combine(tableau.b, velocities)
        if callback is not None:
            try:
                replaced = callback(i, t_next, x)
            except StopIteration:
                return x
            x = x if replaced is None else replaced
    return x


def _error_norm(error: torch.Tensor, x: torch.Tensor, x_next: torch.Tensor, rtol: float, atol: float) -> torch.Tensor:
    """Root mean square of the error in units of the tolerance, per sample: (B,) float64 on the CPU."""
    scaled = error / (atol + rtol * torch.maximum(x.abs(), x_next.abs()))
    return scaled.flatten(1).square().mean(1).sqrt().double().cpu()


def _first_step(velocity_fn, x, velocity, t, direction, order, rtol, atol) -> torch.Tensor:
    """Hairer's guess of a step at which the error is near the tolerance (Solving ODEs I, Section II.4): (B,)."""
    zero = torch.zeros_like(x)
    d0 = _error_norm(x, x, zero, rtol, atol)
    d1 = _error_norm(velocity, x, zero, rtol, atol)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.tensor(1e-6, dtype=torch.float64), 0.01 * d0 / d1)
    step = expand_like((direction * h0).to(x), x)
    change = velocity_fn(x + step * velocity, (t + direction * h0).to(x)) - velocity
    d2 = _error_norm(change, x, zero, rtol, atol) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, torch.clamp(h0 * 1e-3, min=1e-6), (0.01 / largest) ** (1 / (order + 1)))
    return torch.minimum(100 * h0, h1)


def solve_adaptive(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    t_start: float,
    t_end: float,
    tableau: Tableau,
    rtol: float,
    atol: float,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Integrate each sample with its own steps, so that no image depends on the others in its batch.

    Args:
        velocity_fn: (x, t) -> dx/dt with t (B,).
        x: (B, …), the state at t_start.
        t_start, t_end: the interval; backwards in time where t_end < t_start.
        tableau: one of `ADAPTIVE`.
        rtol, atol: tolerances of the local error, as a root mean square over each sample's elements.
        callback: as in `solve_fixed`, called after each round of steps with the time of the slowest sample.

    Raises:
        RuntimeError: where a sample cannot proceed: its step fell below 1e-7 or 10,000 rounds did not finish.
    """
    direction = 1.0 if t_end > t_start else -1.0
    B = len(x)
    t = torch.full((B,), t_start, dtype=torch.float64)
    velocity = velocity_fn(x, t.to(x))
    h = _first_step(velocity_fn, x, velocity, t, direction, tableau.order, rtol, atol)
    rejected = torch.zeros(B, dtype=torch.bool)
    for i in range(MAX_STEPS):
        remaining = direction * (t_end - t)
        # A step that would leave a sliver is stretched to the end; a finished sample steps by 0 and stays.
        last = h >= remaining * (1 - 1e-6)
        h = torch.where(last, remaining, h)
        dt = expand_like((direction * h).to(x), x)
        velocities = [velocity]
        for c, a in zip(tableau.c[1:], tableau.a[1:], strict=True):
            velocities.append(velocity_fn(x + dt * _combine(a, velocities), (t + direction * c * h).to(x)))
        x_next = x + dt * _combine(tableau.b, velocities)
        t_next = torch.where(last, t_end, t + direction * h)
        velocities.append(velocity_fn(x_next, t_next.to(x)))
        error = _error_norm(dt * _combine(tableau.b_error, velocities), x, x_next, rtol, atol)

        accepted = error <= 1  # False for NaN, too
        keep = expand_like(accepted.to(x.device), x)
        x = torch.where(keep, x_next, x)
        velocity = torch.where(keep, velocities[-1], velocity)
        t = torch.where(accepted, t_next, t)
        if callback is not None:
            try:
                replaced = callback(i, (t.min() if direction > 0 else t.max()).item(), x)
            except StopIteration:
                return x
            if replaced is not None:
                x = replaced
                velocity = velocity_fn(x, t.to(x))
        done = t == t_end
        if done.all():
            return x

        growth = 0.9 * error.clamp(min=1e-10) ** (-1 / tableau.order)
        growth = growth.nan_to_num(nan=0.2).clamp(0.2, 10.0)
        growth = torch.where(rejected | ~accepted, growth.clamp(max=1.0), growth)
        rejected = ~accepted
        h = h * growth
        if (stuck := ~done & (h < MIN_STEP) & (direction * (t_end - t) > MIN_STEP)).any():
            sample = int(stuck.nonzero()[0])
            raise RuntimeError(
                f"sample {sample} cannot proceed at t={t[sample]:.6g}: its step fell below {MIN_STEP:g} with "
                f"rtol={rtol:g} and atol={atol:g}; loosen them, or take a fixed-step solver"
            )
    raise RuntimeError(
        f"no end after {MAX_STEPS} steps, at t={t.min():.6g}, with rtol={rtol:g} and atol={atol:g}; loosen them, or "
        "take a fixed-step solver"
    )
