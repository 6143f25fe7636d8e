"""Runge–Kutta solvers for dx/dt = velocity(x, t) on batches of images, with fixed or with per-image adaptive steps.

x (B, …) float32 or float64. Times handed to `velocity_fn` are tensors like x's dtype: () on the CPU where the whole
batch shares one, so that they cost no synchronisation with a GPU, else (B,) on x's device.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch

from .interpolants import expand_like

VelocityFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Callback = Callable[[int, float, torch.Tensor], torch.Tensor | None]

MULTISTEP = ("explicit_adams", "implicit_adams")  # solved by torchdiffeq
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

_DOPRI8_B = (
    14005451 / 335480064,
    0.0,
    0.0,
    0.0,
    0.0,
    -59238493 / 1068277825,
    181606767 / 758867731,
    561292985 / 797845732,
    -1041891430 / 1371343529,
    760417239 / 1151165299,
    118820643 / 751138087,
    -528747749 / 2220607170,
    1 / 4,
)
_DOPRI8_B_LOWER = (
    13451932 / 455176623,
    0.0,
    0.0,
    0.0,
    0.0,
    -808719846 / 976000145,
    1757004468 / 5645159321,
    656045339 / 265891186,
    -3867574721 / 1518517206,
    465885868 / 322736535,
    53011238 / 667516719,
    2 / 45,
    0.0,
)

ADAPTIVE = {
    "adaptive_heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2), (-1 / 2, 1 / 2, 0.0)),
    # Fehlberg, 1969
    "fehlberg2": Tableau(
        2,
        (0.0, 1 / 2, 1.0),
        ((), (1 / 2,), (1 / 256, 255 / 256)),
        (1 / 512, 255 / 256, 1 / 512),
        (-1 / 512, 0.0, 1 / 512, 0.0),
    ),
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
    # Prince and Dormand, 1981
    "dopri8": Tableau(
        8,
        (
            0.0,
            1 / 18,
            1 / 12,
            1 / 8,
            5 / 16,
            3 / 8,
            59 / 400,
            93 / 200,
            5490023248 / 9719169821,
            13 / 20,
            1201146811 / 1299019798,
            1.0,
            1.0,
        ),
        (
            (),
            (1 / 18,),
            (
                1 / 48,
                1 / 16,
            ),
            (
                1 / 32,
                0.0,
                3 / 32,
            ),
            (
                5 / 16,
                0.0,
                -75 / 64,
                75 / 64,
            ),
            (
                3 / 80,
                0.0,
                0.0,
                3 / 16,
                3 / 20,
            ),
            (
                29443841 / 614563906,
                0.0,
                0.0,
                77736538 / 692538347,
                -28693883 / 1125000000,
                23124283 / 1800000000,
            ),
            (
                16016141 / 946692911,
                0.0,
                0.0,
                61564180 / 158732637,
                22789713 / 633445777,
                545815736 / 2771057229,
                -180193667 / 1043307555,
            ),
            (
                39632708 / 573591083,
                0.0,
                0.0,
                -433636366 / 683701615,
                -421739975 / 2616292301,
                100302831 / 723423059,
                790204164 / 839813087,
                800635310 / 3783071287,
            ),
            (
                246121993 / 1340847787,
                0.0,
                0.0,
                -37695042795 / 15268766246,
                -309121744 / 1061227803,
                -12992083 / 490766935,
                6005943493 / 2108947869,
                393006217 / 1396673457,
                123872331 / 1001029789,
            ),
            (
                -1028468189 / 846180014,
                0.0,
                0.0,
                8478235783 / 508512852,
                1311729495 / 1432422823,
                -10304129995 / 1701304382,
                -48777925059 / 3047939560,
                15336726248 / 1032824649,
                -45442868181 / 3398467696,
                3065993473 / 597172653,
            ),
            (
                185892177 / 718116043,
                0.0,
                0.0,
                -3185094517 / 667107341,
                -477755414 / 1098053517,
                -703635378 / 230739211,
                5731566787 / 1027545527,
                5232866602 / 850066563,
                -4093664535 / 808688257,
                3962137247 / 1805957418,
                65686358 / 487910083,
            ),
            (
                403863854 / 491063109,
                0.0,
                0.0,
                -5068492393 / 434740067,
                -411421997 / 543043805,
                652783627 / 914296604,
                11173962825 / 925320556,
                -13158990841 / 6184727034,
                3936647629 / 1978049680,
                -160528059 / 685178525,
                248638103 / 1413531060,
                0.0,
            ),
        ),
        _DOPRI8_B,
        (*(high - low for high, low in zip(_DOPRI8_B, _DOPRI8_B_LOWER, strict=True)), 0.0),
    ),
}


def combine(weights: tuple[float, ...], velocities: list[torch.Tensor]) -> torch.Tensor:
    """Σ weights · velocities over the stages of a Runge–Kutta step."""
    return sum(w * v for w, v in zip(weights, velocities, strict=True) if w != 0)


def after_step(callback: Callback | None, index: int, t: float, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Show the state to the callback: (the state to go on with, whether the callback asked to stop).

    The state is another tensor exactly where the callback changed it, be it in place.
    """
    if callback is None:
        return x, False
    uncounted = x.is_inference()  # PyTorch counts the changes of all other tensors
    before = x.clone() if uncounted else x._version
    try:
        replaced = callback(index, t, x)
    except StopIteration:
        return x, True
    if replaced is not None and replaced is not x:
        return replaced, False
    unchanged = torch.equal(x, before) if uncounted else x._version == before
    return (x if unchanged else x.view_as(x)), False


def stage_times(tableau: Tableau, t: float, t_next: float) -> list[float]:
    """The times of a Runge–Kutta step's network calls; those at its end are exactly t_next."""
    return [t_next if c == 1.0 else t + c * (t_next - t) for c in tableau.c]


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
        for stage_t, a in zip(stage_times(tableau, t, t_next), tableau.a, strict=True):
            stage = x + dt * combine(a, velocities) if a else x
            velocities.append(velocity_fn(stage, torch.tensor(stage_t, dtype=x.dtype)))
        x = x + dt * combine(tableau.b, velocities)
        x, stopped = after_step(callback, i, t_next, x)
        if stopped:
            return x
    return x


def _error_norm(error: torch.Tensor, x: torch.Tensor, x_next: torch.Tensor, rtol: float, atol: float) -> torch.Tensor:
    """Root mean square of the error in units of the tolerance, per sample: (B,) float64 on the CPU."""
    scaled = error / (atol + rtol * torch.maximum(x.abs(), x_next.abs()))
    return scaled.flatten(1).square().mean(1).sqrt().cpu().double()


def _first_step(velocity_fn, x, velocity, t, direction, span, order, rtol, atol) -> torch.Tensor:
    """Hairer's guess of a step at which the error is near the tolerance (Solving ODEs I, Section II.4): (B,)."""
    zero = torch.zeros_like(x)
    d0 = _error_norm(x, x, zero, rtol, atol)
    d1 = _error_norm(velocity, x, zero, rtol, atol)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.tensor(1e-6, dtype=torch.float64), 0.01 * d0 / d1)
    h0 = h0.clamp(max=span)  # the network knows no times beyond the end
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

    A sample that has arrived stays in the batch until the slowest is there: the network still sees its row.

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
    h = _first_step(velocity_fn, x, velocity, t, direction, abs(t_end - t_start), tableau.order, rtol, atol)
    rejected = torch.zeros(B, dtype=torch.bool)
    for i in range(MAX_STEPS):
        remaining = direction * (t_end - t)
        # A step that would leave a sliver is stretched to the end; a finished sample steps by 0 and stays.
        last = h >= remaining * (1 - 1e-6)
        h = torch.where(last, remaining, h)
        dt = expand_like((direction * h).to(x), x)
        velocities = [velocity]
        for c, a in zip(tableau.c[1:], tableau.a[1:], strict=True):
            velocities.append(velocity_fn(x + dt * combine(a, velocities), (t + direction * c * h).to(x)))
        x_next = x + dt * combine(tableau.b, velocities)
        t_next = torch.where(last, t_end, t + direction * h)
        velocities.append(velocity_fn(x_next, t_next.to(x)))
        error = _error_norm(dt * combine(tableau.b_error, velocities), x, x_next, rtol, atol)

        accepted = error <= 1  # False for NaN, too
        keep = expand_like(accepted.to(x.device), x)
        x = torch.where(keep, x_next, x)
        velocity = torch.where(keep, velocities[-1], velocity)
        t = torch.where(accepted, t_next, t)
        before = x
        x, stopped = after_step(callback, i, (t.min() if direction > 0 else t.max()).item(), x)
        if stopped:
            return x
        if x is not before:
            velocity = velocity_fn(x, t.to(x))
        done = t == t_end
        if done.all():
            return x

        growth = 0.9 * error.clamp(min=1e-10) ** (-1 / tableau.order)
        growth = growth.nan_to_num(nan=0.2).clamp(0.2, 10.0)
        growth = torch.where(rejected | ~accepted, growth.clamp(max=1.0), growth)
        rejected = ~accepted
        h = h * growth
        if (stuck := ~done & ~(h >= MIN_STEP) & (direction * (t_end - t) > MIN_STEP)).any():
            sample = int(stuck.nonzero()[0])
            raise RuntimeError(
                f"sample {sample} cannot proceed at t={t[sample]:.6g}: its step fell below {MIN_STEP:g} with "
                f"rtol={rtol:g} and atol={atol:g}; loosen them, or take a fixed-step solver"
            )
    raise RuntimeError(
        f"no end after {MAX_STEPS} steps, at t={t.min():.6g}, with rtol={rtol:g} and atol={atol:g}; loosen them, or "
        "take a fixed-step solver"
    )


def solve_multistep(
    velocity_fn: VelocityFn,
    x: torch.Tensor,
    grid: torch.Tensor,
    method: str,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Solve by one of torchdiffeq's multistep methods on a uniform grid.

    Args:
        velocity_fn: (x, t) -> dx/dt.
        x: (B, …), the state at grid[0].
        grid: (steps + 1,) float64 on the CPU, uniform.
        method: one of `MULTISTEP`.
        callback: as in `solve_fixed`. These methods live on the velocities before, so that they start anew from a
            state that it replaced.
    """
    torchdiffeq = importlib.import_module("torchdiffeq")  # portable folders work without it, but for these methods
    start, stopped = 0, False  # index into the grid of the state x

    class Leave(Exception):  # noqa: N818
        """Ends torchdiffeq's loop where the callback stopped or replaced the state."""

    class Field(torch.nn.Module):
        steps = 0

        def forward(self, t, state):
            return velocity_fn(state, t)

        def callback_step(self, t, state, dt):
            """torchdiffeq calls this before each step."""
            nonlocal x, start, stopped
            if self.steps:
                shown, stopped = after_step(callback, start + self.steps - 1, t.item(), state)
                if stopped or shown is not state:
                    x, start = shown, start + self.steps
                    raise Leave
            self.steps += 1

    # Adams–Bashforth of torchdiffeq's default order, 12, is stable at no step size that anyone would take.
    options = {"step_size": abs((grid[1] - grid[0]).item()) * (1 + 1e-6), "max_order": 4}  # no step more, by rounding
    while not stopped:
        try:
            x = torchdiffeq.odeint(Field(), x, grid[[start, -1]].to(x), method=method, options=options)[-1]
        except Leave:
            continue
        return after_step(callback, len(grid) - 2, grid[-1].item(), x)[0]
    return x
