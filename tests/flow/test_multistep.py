"""Multistep methods: convergence, and callbacks after each step."""

import math

import pytest
import torch
from exact_solutions import oscillating_growth, uniform_grid

from sit_atconv.flow.choices import MULTISTEP
from sit_atconv.flow.multistep import solve_multistep


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
