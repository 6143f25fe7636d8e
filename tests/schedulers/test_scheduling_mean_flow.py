"""MeanFlowScheduler: exact steps of exact mean velocities, and what third-party loops and the pipeline do with it."""

import pytest
import torch

from sit_atconv import InterpolantODEScheduler
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler

MEAN, SPREAD = 0.7, 0.4
LATENTS = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def deviation(t: torch.Tensor) -> torch.Tensor:
    return (t.square() * SPREAD**2 + (1 - t).square()).sqrt()


def exact_mean_velocity(x, t, s):
    """Of Gaussian data: x_t = t·mean + deviation(t)·z."""
    z = (x - t * MEAN) / deviation(t)
    return MEAN + (deviation(s) - deviation(t)) * z / (s - t)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_any_number_of_exact_steps_leads_to_the_data(steps):
    scheduler = MeanFlowScheduler()
    x = scheduler.solve(exact_mean_velocity, LATENTS, steps)
    assert scheduler.num_model_calls == steps
    torch.testing.assert_close(x, MEAN + SPREAD * LATENTS)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_stepping_from_outside_is_solve(steps):
    scheduler = MeanFlowScheduler()
    scheduler.set_timesteps(steps)
    x = LATENTS
    for t, s in zip(scheduler.timesteps, scheduler.end_timesteps, strict=True):
        x = scheduler.step(exact_mean_velocity(x, t, s), t, x).prev_sample
    torch.testing.assert_close(x, scheduler.solve(exact_mean_velocity, LATENTS, steps))
    with pytest.raises(ValueError, match="no timestep is left"):
        scheduler.step(x, t, x)


def test_callbacks_replace_and_stop():
    ends = []

    def callback(step, s, x):
        ends.append((step, s))
        if step == 1:
            raise StopIteration(torch.zeros_like(x))

    x = MeanFlowScheduler().solve(exact_mean_velocity, LATENTS, 4, callback=callback)
    assert ends == [(0, 0.25), (1, 0.5)] and not x.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(dict(path="gvp"), "path='gvp'"), (dict(prediction="noise"), "prediction='noise'")],
)
def test_other_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanFlowScheduler(**arguments)


def test_states_and_numbers_of_steps_are_checked():
    scheduler = MeanFlowScheduler()
    with pytest.raises(ValueError, match="num_inference_steps=0"):
        scheduler.solve(exact_mean_velocity, LATENTS, 0)
    with pytest.raises(ValueError, match="float16"):
        scheduler.solve(exact_mean_velocity, LATENTS.half(), 1)
    with pytest.raises(ValueError, match="output has the shape"):
        scheduler.solve(lambda x, t, s: x[:1], LATENTS, 1)


def test_configs_of_other_schedulers():
    MeanFlowScheduler.from_config(InterpolantODEScheduler(solver="heun").config)
    assert InterpolantODEScheduler.from_config(MeanFlowScheduler().config).config.solver == "midpoint"
    with pytest.raises(ValueError, match="path='vp'"):
        MeanFlowScheduler.from_config(InterpolantODEScheduler("vp").config)


@pytest.mark.parametrize("step_conditioning", ["span", "decoupled"])
def test_pipeline(step_conditioning, tiny_pipeline):
    """Two calls by default; an image depends on its own generator alone; conditioning is computed once."""
    pipe = tiny_pipeline(MeanFlowScheduler(), step_conditioning=step_conditioning)
    calls, modulations = [], []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    pipe.transformer.blocks[0].modulation.register_forward_hook(lambda *_: modulations.append(1))

    def draw(labels, seeds, **options):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(labels, generator=generators, output_type="latent", **options).images

    images = draw([0, 3, 1], [5, 6, 7])
    assert (len(calls), len(modulations)) == (2, 1)
    torch.testing.assert_close(draw([3], [6])[0], images[1], rtol=1e-4, atol=1e-5)
    model, noise = pipe.transformer, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    for steps in (1, 2, 4):
        x, label = noise, torch.tensor([3])
        for i in range(steps):
            x = x + model(x, i / steps, label, end_timestep=(i + 1) / steps).sample.detach() / steps
        torch.testing.assert_close(draw([3], [6], num_inference_steps=steps), x, rtol=1e-4, atol=1e-5)


def test_guidance_of_mean_velocities(tiny_pipeline):
    """u of the null class + scale·(difference), at each step, in the interval of guidance."""
    pipe = tiny_pipeline(MeanFlowScheduler(), step_conditioning="span")
    model, noise = pipe.transformer, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, null = torch.tensor([3, 1]), torch.full((2,), 5)
    cond, weak = (model(noise, 0.0, y, end_timestep=0.5).sample for y in (labels, null))
    x = noise + 0.5 * (weak + 3 * (cond - weak))
    expected = (x + 0.5 * model(x, 0.5, labels, end_timestep=1.0).sample).detach()
    drawn = pipe([3, 1], 3.0, (0.0, 0.4), latents=noise, output_type="latent").images
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)


def test_other_schedulers_sample_it_as_a_flow(tiny_pipeline):
    """At s = t; and the flow's pipeline refuses this scheduler, with one that works."""
    pipe = tiny_pipeline(MeanFlowScheduler(), step_conditioning="span")
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.scheduler = InterpolantODEScheduler.from_config(pipe.scheduler.config, solver="euler")
    first = pipe.transformer(noise, 0.0, torch.tensor([2])).sample.detach()
    drawn = pipe([2], latents=noise, num_inference_steps=1, output_type="latent").images
    torch.testing.assert_close(drawn, noise + first, rtol=1e-4, atol=1e-5)
    assert pipe.default_num_inference_steps == 50
    with pytest.raises(ValueError, match=r"step_conditioning='none'.*InterpolantODEScheduler"):
        tiny_pipeline(MeanFlowScheduler())([2])
    with pytest.raises(ValueError, match="MeanFlowScheduler cannot be inverted"):
        tiny_pipeline(MeanFlowScheduler(), step_conditioning="span").invert(torch.rand(1, 3, 8, 8), [2])


@pytest.mark.parametrize("scheduler", [MeanFlowScheduler(), InterpolantODEScheduler()], ids=["MeanFlow", "ODE"])
def test_guidance_that_is_built_in_is_not_applied_again(scheduler, tiny_pipeline):
    pipe = tiny_pipeline(scheduler, step_conditioning="span", trained_guidance_scale=2.5)
    pipe([1], num_inference_steps=1)
    with pytest.raises(ValueError, match=r"guidance_scale=4.0: this model was trained .* scale 2.5 .* use guidance_sc"):
        pipe([1], guidance_scale=4.0, num_inference_steps=1)
