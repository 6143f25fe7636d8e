"""Runge–Kutta solvers against exact solutions, their order of convergence and torchdiffeq."""

import math

import pytest
import torch
from torchdiffeq import odeint

from sit_atconv.flow.adaptive import solve_adaptive
from sit_atconv.flow.fixed_step import solve_fixed
from sit_atconv.flow.interpolants import expand_like
from sit_atconv.flow.multistep import MULTISTEP, solve_multistep
from sit_atconv.flow.tableaus import ADAPTIVE, FIXED_STEP

TABLEAUS = {**FIXED_STEP, **ADAPTIVE}
TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "heun3": "heun3", "rk4": "rk4"}


def oscillating_growth(x, t):
    """dx/dt = x·cos(t), solved by x(t) = x(0)·exp(sin t)."""
    return x * torch.cos(expand_like(t, x))


def uniform_grid(start: float, end: float, steps: int) -> torch.Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


@pytest.fixture
def x():
    return torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableau_is_consistent(name):
    tableau = TABLEAUS[name]
    assert len(tableau.a) == len(tableau.b) == len(tableau.c)
    assert sum(tableau.b) == pytest.approx(1)
    assert sum(b * c for b, c in zip(tableau.b, tableau.c, strict=True)) == pytest.approx(
        0.5 if tableau.order > 1 else 0
    )
    for row, c in zip(tableau.a, tableau.c, strict=True):
        assert sum(row) == pytest.approx(c)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_embedded_solution_is_one_order_lower(name):
    tableau = ADAPTIVE[name]
    b = [b - error for b, error in zip((*tableau.b, 0.0), tableau.b_error, strict=True)]
    c = (*tableau.c, 1.0)
    for power in range(tableau.order - 1):
        assert sum(b_i * c_i**power for b_i, c_i in zip(b, c, strict=True)) == pytest.approx(1 / (power + 1), abs=1e-12)
    power = tableau.order - 1
    assert sum(b_i * c_i**power for b_i, c_i in zip(b, c, strict=True)) != pytest.approx(1 / (power + 1), abs=1e-4)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("name", FIXED_STEP)
def test_order_of_convergence(name, direction, x):
    start, end = (0.0, 2.0) if direction > 0 else (2.0, 0.0)
    exact = x * math.exp(math.sin(end) - math.sin(start))
    errors = [
        (solve_fixed(oscillating_growth, x, uniform_grid(start, end, n), FIXED_STEP[name]) - exact).abs().max().item()
        for n in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(FIXED_STEP[name].order, abs=0.25)


@pytest.mark.parametrize("name", FIXED_STEP)
def test_fixed_steps_equal_torchdiffeq(name, x):
    grid = uniform_grid(0.0, 1.5, 7)
    expected = odeint(lambda t, x: oscillating_growth(x, t), x, grid, method=TORCHDIFFEQ[name])[-1]
    actual = solve_fixed(oscillating_growth, x, grid, FIXED_STEP[name])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FIXED_STEP)
def test_fixed_steps_visit_their_stages(name, x):
    times = []

    def velocity_fn(x, t):
        assert t.shape == ()
        assert t.dtype == x.dtype
        times.append(t.item())
        return torch.ones_like(x)

    result = solve_fixed(velocity_fn, x, uniform_grid(0.0, 1.0, 2), FIXED_STEP[name])
    torch.testing.assert_close(result, x + 1)
    c = FIXED_STEP[name].c
    assert times == pytest.approx([*(0.5 * c_i for c_i in c), *(0.5 + 0.5 * c_i for c_i in c)])


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_error_follows_the_tolerance(name, span, tolerance, x):
    if ADAPTIVE[name].order == 2 and tolerance < 1e-6:
        pytest.skip("thousands of steps at order 2")
    exact = x * math.exp(math.sin(span[1]) - math.sin(span[0]))
    result = solve_adaptive(oscillating_growth, x, *span, ADAPTIVE[name], rtol=tolerance, atol=tolerance)
    # Fehlberg's pair of order 1 and 2 differ by 1/512 of a step's change: its estimate is famously hopeful.
    factor = 1000 if name == "fehlberg2" else 20
    assert (result - exact).abs().max() < factor * tolerance


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_higher_order_takes_fewer_steps_and_a_looser_tolerance_fewer_still(name, x):
    def calls(tolerance):
        count = 0

        def velocity_fn(x, t):
            nonlocal count
            count += 1
            return oscillating_growth(x, t)

        solve_adaptive(velocity_fn, x, 0.0, 2.0, ADAPTIVE[name], rtol=tolerance, atol=tolerance)
        return count

    assert calls(1e-3) < calls(1e-6) < {2: 10_000, 3: 1_000, 5: 200, 8: 100}[ADAPTIVE[name].order]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_sample_does_not_depend_on_its_neighbours(name):
    """Each sample has its own stiffness, so a norm over the batch would change its steps."""

    def velocity_fn(x, t):
        return -x * x.abs() + torch.sin(5 * expand_like(t, x))

    x = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1.5, 8).view(8, 1, 1)
    options = (0.0, 1.0, ADAPTIVE[name], 1e-3, 1e-6)
    together = solve_adaptive(velocity_fn, x, *options)
    alone = torch.cat([solve_adaptive(velocity_fn, x[i : i + 1], *options) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TABLEAUS)
def test_stages_do_not_change_the_input(name, x):
    before = x.clone()
    if name in FIXED_STEP:
        solve_fixed(oscillating_growth, x, uniform_grid(0, 1, 3), FIXED_STEP[name])
    else:
        solve_adaptive(oscillating_growth, x, 0.0, 1.0, ADAPTIVE[name], 1e-3, 1e-6)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_standstill_is_solved(name, x):
    result = solve_adaptive(lambda x, t: torch.zeros_like(x), x, 0.0, 1.0, ADAPTIVE[name], 1e-3, 1e-6)
    torch.testing.assert_close(result, x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_starting_at_zero_is_solved(name):
    zero = torch.zeros(2, 3, dtype=torch.float64)
    result = solve_adaptive(
        lambda x, t: torch.cos(expand_like(t, x)).expand_as(x), zero, 0.0, 1.0, ADAPTIVE[name], 1e-6, 1e-9
    )
    torch.testing.assert_close(result, torch.full_like(zero, math.sin(1.0)), rtol=1e-3, atol=0)


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


@pytest.mark.parametrize(
    "velocity_fn",
    [
        pytest.param(lambda x, t: (1 / (0.5 - expand_like(t, x))).expand_as(x), id="singular"),
        pytest.param(lambda x, t: x**2, id="explodes"),
        pytest.param(lambda x, t: torch.where(expand_like(t, x) > 0.3, torch.nan, x), id="turns NaN"),
        pytest.param(lambda x, t: torch.full_like(x, torch.nan), id="NaN from the start"),
        pytest.param(lambda x, t: torch.full_like(x, torch.inf), id="infinite from the start"),
    ],
)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_problem_that_cannot_be_solved_raises_soon(name, velocity_fn, request):
    """At once in terms of network calls: with a real model, each is a second."""
    if name == "fehlberg2" and request.node.callspec.id.endswith("singular"):
        pytest.skip("its error estimate is so small that it steps across")
    calls = 0

    def counted(x, t):
        nonlocal calls
        calls += 1
        if calls > 2_000:
            pytest.fail("no end after 2,000 calls")
        return velocity_fn(x, t)

    with pytest.raises(RuntimeError, match="sample 0 cannot proceed at t="):
        solve_adaptive(counted, torch.full((2, 3), 1.5), 0.0, 1.0, ADAPTIVE[name], 1e-3, 1e-6)


def test_the_failing_sample_is_named():
    def velocity_fn(x, t):
        return torch.where((torch.arange(4).view(4, 1) == 2) & (expand_like(t, x) > 0.3), torch.nan, torch.ones_like(x))

    with pytest.raises(RuntimeError, match="sample 2 cannot proceed"):
        solve_adaptive(velocity_fn, torch.ones(4, 2), 0.0, 1.0, ADAPTIVE["dopri5"], 1e-3, 1e-6)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("method", MULTISTEP)
def test_multistep_methods_converge(method, span, x):
    exact = x * math.exp(math.sin(span[1]) - math.sin(span[0]))
    errors = [
        (solve_multistep(oscillating_growth, x, uniform_grid(*span, n), method) - exact).abs().max().item()
        for n in (20, 80)
    ]
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 30


@pytest.mark.parametrize("method", MULTISTEP)
def test_multistep_callback_watches_every_step(method, x):
    steps = []
    solve_multistep(oscillating_growth, x, uniform_grid(0.0, 1.0, 4), method, lambda i, t, x: steps.append((i, t)))
    assert [i for i, _ in steps] == [0, 1, 2, 3]
    assert [t for _, t in steps] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("method", MULTISTEP)
def test_multistep_callback_replaces_and_stops(method, x):
    """After a replaced state it goes on as a solve that starts there."""
    grid = uniform_grid(0.0, 1.0, 12)
    seen = []

    def callback(i, t, state):
        seen.append(i)
        if i == 9:
            raise StopIteration
        return torch.full_like(state, 2.0) if i == 5 else None

    result = solve_multistep(oscillating_growth, x, grid, method, callback)
    assert seen == list(range(10))
    expected = solve_multistep(oscillating_growth, torch.full_like(x, 2.0), grid[6:11], method)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)

    def in_place(i, t, state):
        if i == 5:
            state.fill_(2.0)
        if i == 9:
            raise StopIteration

    with torch.inference_mode():
        torch.testing.assert_close(solve_multistep(oscillating_growth, x.clone(), grid, method, in_place), result)
    torch.testing.assert_close(solve_multistep(oscillating_growth, x.clone(), grid, method, in_place), result)

    last = solve_multistep(oscillating_growth, x, grid, method, lambda i, t, x: x + 1 if i == 11 else None)
    torch.testing.assert_close(last, solve_multistep(oscillating_growth, x, grid, method) + 1)
