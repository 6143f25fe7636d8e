"""Adaptive steps against exact solutions: errors, independence of samples, and problems that cannot be solved."""

import math

import pytest
import torch
from exact_solutions import oscillating_growth

from sit_atconv.flow.adaptive import solve_adaptive
from sit_atconv.flow.interpolants import expand_like
from sit_atconv.flow.tableaus import ADAPTIVE


def adaptive_steps(velocity_fn, end: float, name: str, rtol=1e-3, atol=1e-6, x: float = 1.0) -> list[float]:
    """The lengths of the steps of one sample, 0 for those that were rejected."""
    times, x = [0.0], torch.full((1, 2), x, dtype=torch.float64)
    solve_adaptive(velocity_fn, x, 0.0, end, ADAPTIVE[name], rtol, atol, lambda i, t, x: times.append(t))
    return [b - a for a, b in zip(times[:-1], times[1:], strict=True)]


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


@pytest.mark.parametrize("name", ADAPTIVE)
def test_steps_grow_tenfold_at_most(name):
    """As they do where nothing is wrong, with a constant velocity; the last one is cut off at the end."""
    steps = adaptive_steps(lambda x, t: torch.ones_like(x), 1e4, name)
    assert len(steps) > 4
    assert [b / a for a, b in zip(steps[:-2], steps[1:-1], strict=True)] == pytest.approx([10.0] * (len(steps) - 2))


def test_the_tolerance_is_relative_to_the_larger_of_two_states():
    """x = t² from 0: the error of Heun's step is h², so that with rtol > 1 any first step is good enough."""
    assert 0 not in adaptive_steps(lambda x, t: 2 * expand_like(t, x) + 0 * x, 1.0, "adaptive_heun", 1.5, 1e-12, x=0.0)


def test_the_order_of_the_method_decides_on_the_next_step():
    """The error of Heun's step for x = t² is h², so that steps of 0.9·√atol are just right, found at once."""
    steps = adaptive_steps(lambda x, t: 2 * expand_like(t, x) + 0 * x, 1.0, "adaptive_heun", 1e-12, 1e-2)
    assert len(steps) > 8
    assert steps[-6:-1] == pytest.approx([0.09] * 5)


def test_a_sliver_is_not_left_to_a_step_of_its_own():
    def constant(x, t):
        return torch.ones_like(x)

    first, second, third, *_ = adaptive_steps(constant, 1e4, "dopri5")
    assert len(adaptive_steps(constant, first + second + third * (1 + 5e-7), "dopri5")) == 3
    assert len(adaptive_steps(constant, first + second + third * (1 + 5e-6), "dopri5")) == 4


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_network_is_never_asked_beyond_the_end(name, span):
    """The first step is guessed from the velocity, which is next to nothing here."""
    times = []

    def slow(x, t):
        times.append(t)
        return 1e-5 * torch.ones_like(x)

    solve_adaptive(slow, torch.ones(2, 3, dtype=torch.float64), *span, ADAPTIVE[name], 1e-3, 1e-6)
    assert 0 <= torch.stack(times).min() <= torch.stack(times).max() <= 1


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_callback_of_an_adaptive_solver_is_told_the_time_of_the_slowest_sample(span):
    speeds = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    times = []
    x = torch.ones(2, 1, dtype=torch.float64)
    callback = lambda i, t, x: times.append(t)  # noqa: E731
    solve_adaptive(lambda x, t: speeds * x, x, *span, ADAPTIVE["bosh3"], 1e-4, 1e-6, callback)
    assert len(times) > 10
    assert times.index(span[1]) == len(times) - 1
    assert times == sorted(times, reverse=span[0] > span[1])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_velocities_of_a_state_that_was_replaced_are_forgotten(name):
    """dx/dt = x: whoever stands at 0 stays there."""
    x = torch.ones(2, 3, dtype=torch.float64)
    callback = lambda i, t, x: torch.zeros_like(x) if i == 0 else None  # noqa: E731
    end = solve_adaptive(lambda x, t: x.clone(), x, 0.0, 1.0, ADAPTIVE[name], 1e-3, 1e-6, callback)
    assert not end.any()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_steps_do_not_grow_right_after_a_rejection(name):
    """The velocity jumps at t=0.5, where steps are rejected until one gets across; the next one is no longer."""
    steps = adaptive_steps(lambda x, t: torch.where(expand_like(t, x) < 0.5, 1.0, 50.0) * x, 1.0, name)
    after = [i for i in range(1, len(steps) - 1) if steps[i - 1] == 0 < steps[i]]
    assert any(steps[i + 1] > 0 for i in after)
    assert all(steps[i + 1] <= steps[i] * (1 + 1e-9) for i in after)


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
