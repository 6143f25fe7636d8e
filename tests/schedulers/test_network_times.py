"""The contract by which conditioning is computed ahead: `network_times` lists the calls that `solve` makes."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.flow.choices import MULTISTEP, SDE_SOLVERS
from sit_atconv.flow.conditioning import time_key
from sit_atconv.flow.interpolants import PREDICTIONS
from sit_atconv.flow.tableaus import ADAPTIVE, FIXED_STEP
from sit_atconv.schedulers.diffusers_flow import DiffusersFlowScheduler
from sit_atconv.schedulers.scheduling_interpolant_sde import LAST_STEPS

PATHS = ("linear", "gvp", "vp")
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
LATENTS = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def called_times(scheduler, num_inference_steps: int, dtype: torch.dtype = torch.float32, **options) -> list[float]:
    """The times at which a solve calls its network, as their keys."""
    times = []

    def model_fn(x, t):
        assert t.shape == ()
        times.append(time_key(t))
        return torch.zeros_like(x)

    scheduler.solve(model_fn, LATENTS.to(dtype), num_inference_steps, **options)
    return times


def announced_times(scheduler, num_inference_steps: int, **options) -> list[float]:
    return [time_key(t) for t in scheduler.network_times(num_inference_steps, **options)]


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", FIXED_STEP)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_ode(path, prediction, solver, reverse, steps):
    scheduler = InterpolantODEScheduler(path, prediction, solver)
    calls = called_times(scheduler, steps, reverse=reverse)
    assert len(calls) == steps * scheduler.order
    assert announced_times(scheduler, steps, reverse=reverse) == calls
    assert called_times(scheduler, steps, torch.float64, reverse=reverse) == calls


@pytest.mark.parametrize("start_time", [0.0, 0.4])
@pytest.mark.parametrize(
    "scheduler",
    [
        InterpolantODEScheduler(solver="heun"),
        InterpolantODEScheduler("vp", "noise"),
        InterpolantSDEScheduler(),
        InterpolantSDEScheduler(last_step="none"),
    ],
    ids=["heun", "noise", "sde", "sde without last step"],
)
def test_a_solve_from_a_later_time(scheduler, start_time):
    options = dict(start_time=start_time)
    calls = called_times(scheduler, 3, generator=torch.Generator().manual_seed(0), **options)
    assert announced_times(scheduler, 3, **options) == calls
    assert calls[0] == time_key(max(start_time, scheduler.time_grid(3)[0].item()))
    for wrong in (1.0, -0.1, "half"):
        with pytest.raises(ValueError, match=r"start_time=.* must be at least 0 and below"):
            scheduler.time_grid(3, wrong)


def test_an_inversion_may_end_at_a_later_time():
    calls = called_times(InterpolantODEScheduler(solver="euler"), 2, reverse=True, start_time=0.5)
    assert calls == [1.0, 0.75]


@pytest.mark.parametrize("solver", [*ADAPTIVE, *MULTISTEP])
def test_ode_solvers_without_known_times_announce_none(solver):
    assert InterpolantODEScheduler(solver=solver).network_times(10) == []


@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.parametrize("last_step", LAST_STEPS)
@pytest.mark.parametrize("form", ["sigma", "sbdm"])
@pytest.mark.parametrize("solver", SDE_SOLVERS)
@pytest.mark.parametrize("path", PATHS)
def test_sde(path, solver, form, last_step, steps):
    if last_step == "none" and form == "sbdm" and path == "vp":
        pytest.skip("refused: w is not 0 at t=1")
    scheduler = InterpolantSDEScheduler(path, solver=solver, diffusion_form=form, last_step=last_step)
    generator = torch.Generator().manual_seed(0)
    assert announced_times(scheduler, steps) == called_times(scheduler, steps, generator=generator)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("scheduler_class", "options"),
    [
        (FlowMatchEulerDiscreteScheduler, {}),
        (FlowMatchHeunDiscreteScheduler, {}),
        (DPMSolverMultistepScheduler, FLOW),
        (UniPCMultistepScheduler, FLOW),
    ],
)
def test_schedulers_of_diffusers(scheduler_class, options, prediction):
    config = InterpolantODEScheduler(prediction=prediction).config
    scheduler = DiffusersFlowScheduler(scheduler_class.from_config(config, **options))
    assert announced_times(scheduler, 6) == called_times(scheduler, 6)


@pytest.mark.parametrize(
    "scheduler",
    [
        InterpolantODEScheduler(solver="rk4"),
        InterpolantSDEScheduler(solver="heun"),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_the_pipeline_computes_its_conditioning_once(scheduler, tiny_pipeline):
    pipe = tiny_pipeline(scheduler)
    calls = []
    pipe.transformer.blocks[0].modulation.register_forward_hook(lambda *_: calls.append(1))
    pipe([0, 3], guidance_scale=2.0, num_inference_steps=5, output_type="latent")
    assert calls == [1]


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_inversion_computes_its_conditioning_once(solver, tiny_pipeline):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver=solver))
    calls = []
    pipe.transformer.blocks[0].modulation.register_forward_hook(lambda *_: calls.append(1))
    pipe.invert(torch.rand(2, 3, 8, 8), [0, 3], num_inference_steps=7)
    assert calls == [1]
