"""Fixed steps against exact solutions, their order of convergence and torchdiffeq."""

import math

import pytest
import torch
from exact_solutions import oscillating_growth, uniform_grid
from torchdiffeq import odeint

from sit_atconv.flow.fixed_step import solve_fixed, stage_times
from sit_atconv.flow.tableaus import FIXED_STEP

TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "heun3": "heun3", "rk4": "rk4"}


def test_a_stage_at_the_end_of_a_step_is_at_the_start_of_the_next():
    """Bit for bit: the network's conditioning is looked up by time."""
    grid = uniform_grid(0.999, 0.001, 10).tolist()
    assert any(t + (t_next - t) != t_next for t, t_next in zip(grid[:-1], grid[1:], strict=True))
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        assert stage_times(FIXED_STEP["heun"], t, t_next) == [t, t_next]


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
