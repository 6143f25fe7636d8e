"""Runge–Kutta methods with adaptive steps, for dx/dt = velocity(x, t), where each sample has steps of its own.

x (B, …) float32 or float64. Times, steps and errors are (B,) float64 on the CPU; `velocity_fn` gets its times (B,) with
the dtype and device of x. Steps h are positive; `direction` is 1 forwards in time and −1 backwards.
"""

import torch

from ..models.finite import NotFiniteError
from .callbacks import Callback, VelocityFn, after_step
from .fixed_step import combine
from .interpolants import expand_like
from .tableaus import EmbeddedTableau

MAX_STEPS = 10_000
MIN_STEP = 1e-7


class StepController:
    """Chooses the steps of each sample such that its local error stays near the tolerance.

    Args:
        order: order of the method.
        rtol, atol: tolerances of the local error, as a root mean square over the elements of each sample.
    """

    def __init__(self, order: int, rtol: float, atol: float):
        self.order = order
        self.rtol = rtol
        self.atol = atol

    def error_norm(self, error: torch.Tensor, x: torch.Tensor, x_next: torch.Tensor) -> torch.Tensor:
        """The root mean square of the error in units of the tolerance, per sample: (B,) float64 on the CPU."""
        scaled = error / (self.atol + self.rtol * torch.maximum(x.abs(), x_next.abs()))
        return scaled.flatten(1).square().mean(1).sqrt().cpu().double()

    def first_step(
        self, velocity_fn: VelocityFn, x: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor, span: float
    ) -> torch.Tensor:
        """Guess a first step whose error is near the tolerance (Hairer et al., Solving ODEs I, Section II.4): (B,).

        Args:
            velocity_fn: called once more, at the end of an explicit Euler step.
            x, velocity, t: the state, its velocity and its time.
            span: the time to the end, negative when integrating backwards.
        """
        direction = 1.0 if span > 0 else -1.0
        zero = torch.zeros_like(x)
        d0 = self.error_norm(x, x, zero)
        d1 = self.error_norm(velocity, x, zero)
        if not d1.isfinite().all():
            sample = int((~d1.isfinite()).nonzero()[0])
            raise NotFiniteError(_not_finite(sample, t[sample].item()), sample)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.tensor(1e-6, dtype=torch.float64), 0.01 * d0 / d1)
        h0 = h0.clamp(max=abs(span))  # the network knows no times beyond the end
        step = expand_like((direction * h0).to(x), x)
        change = velocity_fn(x + step * velocity, (t + direction * h0).to(x)) - velocity
        d2 = self.error_norm(change, x, zero) / h0
        largest = torch.maximum(d1, d2)
        h1 = torch.where(largest <= 1e-15, torch.clamp(h0 * 1e-3, min=1e-6), (0.01 / largest) ** (1 / (self.order + 1)))
        return torch.minimum(100 * h0, h1)

    def next_step(self, h: torch.Tensor, error: torch.Tensor, may_grow: torch.Tensor) -> torch.Tensor:
        """The step that follows a step h with this error norm, accepted or not: (B,)."""
        growth = 0.9 * error.clamp(min=1e-10) ** (-1 / self.order)
        growth = growth.nan_to_num(nan=0.2).clamp(0.2, 10.0)
        return h * torch.where(may_grow, growth, growth.clamp(max=1.0))

    def check_progress(self, h: torch.Tensor, t: torch.Tensor, remaining: torch.Tensor, error: torch.Tensor) -> None:
        """Raise RuntimeError if the step of a sample that has not arrived became too small to proceed.

        The error norm of the last steps tells whether that is due to the tolerance, or to numbers that are not finite.
        """
        stuck = ~(h >= MIN_STEP) & (remaining > MIN_STEP)  # `not >=`, so that NaN counts as stuck
        if stuck.any():
            sample = int(stuck.nonzero()[0])
            if not error[sample].isfinite():
                raise NotFiniteError(_not_finite(sample, t[sample].item()), sample)
            raise RuntimeError(
                f"sample {sample} cannot proceed at t={t[sample]:.6g}: its step fell below {MIN_STEP:g} with "
                f"rtol={self.rtol:g} and atol={self.atol:g}; loosen them, or use a fixed-step solver"
            )


def _trial_step(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    velocity: torch.Tensor,
    t: torch.Tensor,
    t_next: torch.Tensor,
    signed_h: torch.Tensor,
    tableau: EmbeddedTableau,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One Runge–Kutta step of every sample: the state at t_next, the velocity there, and the estimated error."""
    dt = expand_like(signed_h.to(x), x)
    velocities = [velocity]
    for c, a in zip(tableau.c[1:], tableau.a[1:], strict=True):
        velocities.append(velocity_fn(x + dt * combine(a, velocities), (t + c * signed_h).to(x)))
    x_next = x + dt * combine(tableau.b, velocities)
    velocities.append(velocity_fn(x_next, t_next.to(x)))
    return x_next, velocities[-1], dt * combine(tableau.b_error, velocities)


def solve_adaptive(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    t_start: float,
    t_end: float,
    tableau: EmbeddedTableau,
    rtol: float,
    atol: float,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Integrate each sample with its own steps, so that no image depends on the others in its batch.

    A sample that has arrived stays in the batch until the slowest one arrives: the network still computes its row.

    Args:
        velocity_fn: (x, t) -> dx/dt with t (B,).
        x: (B, …), the state at t_start.
        t_start, t_end: the interval; the solver integrates backwards in time if t_end < t_start.
        tableau: one of `ADAPTIVE`.
        rtol, atol: tolerances of the local error, as a root mean square over the elements of each sample.
        callback: called as (step, t, x) after each round of steps, with the time of the slowest sample; see
            `after_step`.

    Returns:
        The state at t_end, or the state at which the callback stopped.

    Raises:
        RuntimeError: if a sample cannot proceed: its step fell below 1e-7, or 10,000 rounds did not suffice.
        NotFiniteError: if the velocity is not finite.
    """
    direction = 1.0 if t_end > t_start else -1.0
    controller = StepController(tableau.order, rtol, atol)
    t = torch.full((len(x),), t_start, dtype=torch.float64)
    velocity = velocity_fn(x, t.to(x))
    h = controller.first_step(velocity_fn, x, velocity, t, t_end - t_start)
    rejected = torch.zeros(len(x), dtype=torch.bool)  # in the round before
    for i in range(MAX_STEPS):
        remaining = direction * (t_end - t)
        # A step that would leave a sliver is stretched to the end; a finished sample steps by 0 and stays.
        last = h >= remaining * (1 - 1e-6)
        h = torch.where(last, remaining, h)
        t_next = torch.where(last, t_end, t + direction * h)
        x_next, velocity_next, difference = _trial_step(velocity_fn, x, velocity, t, t_next, direction * h, tableau)
        error = controller.error_norm(difference, x, x_next)

        accepted = error <= 1  # also False for NaN
        keep = expand_like(accepted.to(x.device), x)
        x = torch.where(keep, x_next, x)
        velocity = torch.where(keep, velocity_next, velocity)
        t = torch.where(accepted, t_next, t)
        shown, stopped = after_step(callback, i, _slowest(t, direction), x)
        if stopped:
            return shown
        if shown is not x:
            x, velocity = shown, velocity_fn(shown, t.to(x))
        if (t == t_end).all():
            return x

        h = controller.next_step(h, error, may_grow=accepted & ~rejected)
        controller.check_progress(h, t, direction * (t_end - t), error)
        rejected = ~accepted
    raise RuntimeError(
        f"no end after {MAX_STEPS} steps, at t={_slowest(t, direction):.6g}, with rtol={rtol:g} and atol={atol:g}; "
        "loosen them, or use a fixed-step solver"
    )


def _not_finite(sample: int, t: float) -> str:
    return (
        f"sample {sample} cannot proceed at t={t:.6g}: its velocity is not finite there, whatever the tolerance; check "
        "the weights, or use float32 if they are in half precision"
    )


def _slowest(t: torch.Tensor, direction: float) -> float:
    return (t.min() if direction > 0 else t.max()).item()
