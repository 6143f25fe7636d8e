"""diffusers' flow-matching schedulers behind our interface: their signs and times, and what is refused."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from sit_atconv import InterpolantODEScheduler
from sit_atconv.schedulers.diffusers_flow import DiffusersFlowScheduler

FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


@pytest.fixture
def latents():
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        DPMSolverMultistepScheduler(**FLOW),
        UniPCMultistepScheduler(**FLOW),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_straight_paths_are_solved(scheduler, latents):
    """The velocity data − noise of a straight path leads from the noise to the data, from t=0 to t=1.

    Not exactly with DPMSolver, which starts from the noise as if it were x_t at t=0.001.
    """
    data = torch.rand_like(latents)
    times, shown = [], []

    def model_fn(x, t):
        torch.testing.assert_close(x, (1 - t) * latents + t * data, rtol=0, atol=5e-3)
        times.append(t.item())
        return data - latents

    result = DiffusersFlowScheduler(scheduler).solve(
        model_fn, latents, 5, callback=lambda step, t, x: shown.append((step, t))
    )
    torch.testing.assert_close(result, data, rtol=0, atol=5e-3)
    assert times[0] == pytest.approx(0, abs=2e-3)
    assert [step for step, _ in shown] == list(range(len(times)))
    assert shown[-1][1] == 1


def test_a_callback_replaces_and_stops(latents):
    def callback(step, t, x):
        if step == 2:
            raise StopIteration
        return torch.zeros_like(x)

    scheduler = DiffusersFlowScheduler(FlowMatchEulerDiscreteScheduler())
    result = scheduler.solve(lambda x, t: torch.ones_like(x), latents, 4, callback=callback)
    torch.testing.assert_close(result, torch.full_like(latents, 0.25))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(), "DDIMScheduler is not set up for flow matching"),
        (DPMSolverMultistepScheduler(), r"use DPMSolverMultistepScheduler\.from_config\(config, use_flow_sigmas=True"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True), "not set up for flow matching"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling draws without a generator"),
        (
            FlowMatchEulerDiscreteScheduler.from_config(InterpolantODEScheduler(path="vp").config),
            "path='vp': diffusers' flow schedulers support the linear path only; use InterpolantODEScheduler",
        ),
    ],
)
def test_schedulers_that_cannot_be_used(scheduler, message):
    with pytest.raises(ValueError, match=message):
        DiffusersFlowScheduler(scheduler)
