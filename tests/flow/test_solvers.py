"""What all Runge–Kutta solvers have in common: callbacks, and an input that stays as it is."""

import math

import pytest
import torch
from exact_solutions import oscillating_growth, uniform_grid

from sit_atconv.flow.adaptive import solve_adaptive
from sit_atconv.flow.choices import ODE_SOLVERS
from sit_atconv.flow.fixed_step import solve_fixed
from sit_atconv.flow.solvers import solve_ode
from sit_atconv.flow.tableaus import ADAPTIVE, FIXED_STEP

TABLEAUS = {**FIXED_STEP, **ADAPTIVE}


@pytest.mark.parametrize("name", TABLEAUS)
def test_stages_do_not_change_the_input(name, x):
    before = x.clone()
    if name in FIXED_STEP:
        solve_fixed(oscillating_growth, x, uniform_grid(0, 1, 3), FIXED_STEP[name])
    else:
        solve_adaptive(oscillating_growth, x, 0.0, 1.0, ADAPTIVE[name], 1e-3, 1e-6)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def solve(name, velocity_fn, x, callback):
    if name in FIXED_STEP:
        return solve_fixed(velocity_fn, x, uniform_grid(0.0, 1.0, 4), FIXED_STEP[name], callback)
    return solve_adaptive(velocity_fn, x, 0.0, 1.0, ADAPTIVE[name], 1e-6, 1e-6, callback)


@pytest.mark.parametrize("name", TABLEAUS)
def test_callback_sees_every_step(name, x):
    steps = []
    result = solve(name, oscillating_growth, x, lambda i, t, x: steps.append((i, t, x)))
    indices, times, states = zip(*steps, strict=True)
    assert indices == tuple(range(len(steps)))
    assert list(times) == sorted(times)
    assert times[-1] == 1.0
    torch.testing.assert_close(states[-1], result, rtol=0, atol=0)
    if name in FIXED_STEP:
        assert times == pytest.approx((0.25, 0.5, 0.75, 1.0))


@pytest.mark.parametrize("name", TABLEAUS)
def test_callback_can_replace_the_state(name, x):
    """dx/dt = x from a state replaced once: the solution goes on from the replacement."""
    replaced_at = []

    def callback(i, t, state):
        if not replaced_at and t >= 0.5:
            replaced_at.append(t)
            return torch.full_like(state, 2.0)
        return None

    result = solve(name, lambda x, t: x, x[:1], callback)
    exact = 2 * math.exp(1 - replaced_at[0])
    tolerance = {"euler": 0.2, "midpoint": 0.02, "heun": 0.02}.get(name, 1e-3)
    torch.testing.assert_close(result, torch.full_like(x[:1], exact), rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", TABLEAUS)
def test_callback_can_stop(name, x):
    seen = []

    def callback(i, t, state):
        seen.append(state)
        if i == 1:
            raise StopIteration

    result = solve(name, oscillating_growth, x, callback)
    assert len(seen) == 2
    torch.testing.assert_close(result, seen[-1], rtol=0, atol=0)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("solver", ODE_SOLVERS)
def test_every_name_is_a_solver(solver, backwards, x):
    start, end = (1.5, 0.0) if backwards else (0.0, 1.5)
    result = solve_ode(oscillating_growth, x, uniform_grid(start, end, 100), solver, rtol=1e-4, atol=1e-6)
    exact = x * math.exp(math.sin(end) - math.sin(start))
    torch.testing.assert_close(result, exact, rtol={"euler": 0.02, "fehlberg2": 0.02}.get(solver, 1e-3), atol=0)
