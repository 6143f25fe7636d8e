"""diffusers' flow-matching schedulers behind our interface: their signs and times, and what is refused."""

import re

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.schedulers import diffusers_flow
from sit_atconv.schedulers.diffusers_flow import DiffusersFlowScheduler, checked_solver, dynamic_shift, fault_of_grid

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
        (
            FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
            r"use InterpolantSDEScheduler\.from_config\(config\)",
        ),
        (
            FlowMatchEulerDiscreteScheduler.from_config(InterpolantODEScheduler(path="vp").config),
            "path='vp': diffusers' flow schedulers support the linear path only; use InterpolantODEScheduler",
        ),
    ],
)
def test_schedulers_that_cannot_be_used(scheduler, message):
    with pytest.raises(ValueError, match=message):
        DiffusersFlowScheduler(scheduler)


@pytest.mark.parametrize(
    ("sigmas", "fault"),
    [
        ([1.0, 0.5, 0.0], None),
        ([1.0, 0.5, 0.5, 0.0], None),  # Heun's method evaluates twice at the same time
        ([1.0, float("nan"), 0.0], "not finite"),
        ([float("inf"), 1.0, 0.0], "not finite"),
        ([14.6, 1.0, 0.0], r"outside \[0, 1\]: 14.6, 1, 0"),
        ([1.0, 0.5, -0.1], r"outside \[0, 1\]"),
        ([1.0, 0.2, 0.5, 0.0], "do not fall"),
        ([0.5, 0.2, 0.0], "starts at sigma=0.5"),
        ([1.0, 0.5, 0.1], "stops at sigma=0.1, which leaves that much noise"),
        ([1.0], "has 1 sigmas for 2 network calls"),
    ],
)
def test_faults_of_a_grid(sigmas, fault):
    found = fault_of_grid(torch.tensor(sigmas), 2 if len(sigmas) == 1 else len(sigmas) - 1)
    assert found is None if fault is None else re.search(fault, found)


CONFIG = InterpolantODEScheduler().config
BAD = [
    pytest.param(scheduler_class.from_config(CONFIG, **options), id=f"{scheduler_class.__name__}-{options}")
    for scheduler_class, options in [
        (DPMSolverMultistepScheduler, dict(use_karras_sigmas=True, **FLOW)),
        (DPMSolverMultistepScheduler, dict(use_exponential_sigmas=True, **FLOW)),
        (DPMSolverMultistepScheduler, dict(use_lu_lambdas=True, **FLOW)),
        (DPMSolverMultistepScheduler, dict(final_sigmas_type="sigma_min", **FLOW)),
        (DPMSolverMultistepScheduler, dict(use_flow_sigmas=True, prediction_type="sample")),
        (DPMSolverSinglestepScheduler, dict(use_karras_sigmas=True, **FLOW)),
        (UniPCMultistepScheduler, dict(use_beta_sigmas=True, **FLOW)),
        (UniPCMultistepScheduler, dict(lower_order_final=False, **FLOW)),
        (UniPCMultistepScheduler, dict(num_train_timesteps=10, **FLOW)),
        (DEISMultistepScheduler, FLOW),
        (DEISMultistepScheduler, dict(use_dynamic_shifting=True, **FLOW)),
        (SASolverScheduler, FLOW),
        (DPMSolverMultistepInverseScheduler, FLOW),
        (FlowMatchEulerDiscreteScheduler, dict(invert_sigmas=True)),
        (DDIMScheduler, {}),
        (DDIMScheduler, dict(prediction_type="flow_prediction")),
        (EulerDiscreteScheduler, {}),
        (EulerDiscreteScheduler, dict(prediction_type="flow_prediction", use_karras_sigmas=True)),
        (HeunDiscreteScheduler, {}),
        (LCMScheduler, {}),
    ]
]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", BAD)
def test_the_advice_for_schedulers_that_cannot_be_used_works(scheduler, latents):
    """Every expression in the message that makes a scheduler makes one that solves."""
    with pytest.raises(ValueError) as refusal:
        checked_solver(scheduler, 10, num_tokens=16)
    advice = re.findall(r"\w+\.from_config\(config[^)]*\)", str(refusal.value))
    assert advice, refusal.value
    names = {**vars(diffusers), "InterpolantODEScheduler": InterpolantODEScheduler, "config": scheduler.config}
    for expression in advice:
        name = expression.partition(".")[0]
        scope = {"config": scheduler.config, name: names.get(name) or getattr(diffusers, name)}
        solver = checked_solver(eval(expression, scope), 10, num_tokens=16)
        result = solver.solve(lambda x, t: (0.5 - x) / (1 - t).clamp(min=1e-3), latents, 10)
        torch.testing.assert_close(result, torch.full_like(latents, 0.5), rtol=0, atol=0.05)


@pytest.mark.parametrize("path", ["vp", "gvp"])
@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_the_advice_for_diffusion_models_works(scheduler_class, path):
    """A DiT: the noise on a path that diffusers' flow schedulers do not have."""
    ours = InterpolantODEScheduler(path=path, prediction="noise", solver="heun")
    scheduler = scheduler_class.from_config(ours.config)
    with pytest.raises(ValueError, match=r"use InterpolantODEScheduler\.from_config\(pipe\.scheduler\.config\)"):
        checked_solver(scheduler, 10, num_tokens=16)
    back = InterpolantODEScheduler.from_config(scheduler.config)
    assert (back.config.path, back.config.prediction, back.config.solver) == (path, "noise", "heun")


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        FlowMatchLCMScheduler(),
        DPMSolverSinglestepScheduler(**FLOW),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", flow_shift=3.0, **FLOW),
        UniPCMultistepScheduler(use_dynamic_shifting=True, **FLOW),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_schedulers_that_work(scheduler, steps, latents):
    before = {name: str(value) for name, value in vars(scheduler).items()}
    solver = checked_solver(scheduler, steps, num_tokens=16)
    generator = torch.Generator().manual_seed(0)
    result = solver.solve(lambda x, t: (0.5 - x) / (1 - t).clamp(min=1e-3), latents, steps, generator)
    torch.testing.assert_close(result, torch.full_like(latents, 0.5), rtol=0, atol=0.02)
    assert {name: str(value) for name, value in vars(scheduler).items()} == before  # a solve works on a copy


def test_dynamic_shift():
    """As in diffusers: 0.5 for 256 tokens and 1.15 for 4096, linear between them."""
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    assert dynamic_shift(config, 256) == pytest.approx(0.5)
    assert dynamic_shift(config, 4096) == pytest.approx(1.15)
    assert dynamic_shift({**config, "max_shift": 2.5}, (256 + 4096) // 2) == pytest.approx(1.5)
    times = [
        DiffusersFlowScheduler(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), tokens).network_times(4)[1]
        for tokens in (256, 4096)
    ]
    assert times[1] < times[0]  # more tokens: more steps near the noise


def test_a_refusal_always_has_a_reason():
    """An assertion without a text inside diffusers is named by its type."""
    scheduler = DPMSolverMultistepScheduler(use_dynamic_shifting=True, time_shift_type="linear", **FLOW)
    with pytest.raises(ValueError, match=r"cannot make 10 steps \(AssertionError\); use "):
        checked_solver(scheduler, 10, num_tokens=16)


def test_no_advice_is_sought_for_the_scheduler_that_advice_tries(monkeypatch):
    asked, remedy = [], diffusers_flow.remedy
    monkeypatch.setattr(diffusers_flow, "remedy", lambda *given: asked.append(given) or remedy(*given))
    with pytest.raises(ValueError, match="DDIMScheduler is not set up for flow matching; use InterpolantODEScheduler"):
        checked_solver(DDIMScheduler(), 2, num_tokens=16)
    assert len(asked) == 1


def test_stochastic_sampling_has_a_remedy():
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    assert InterpolantSDEScheduler.from_config(scheduler.config).config.path == "linear"
