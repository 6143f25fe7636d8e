"""Noise of another standard deviation than 1: the same flow in other units, kept with the pipeline."""

import math

import diffusers
import pytest
import torch

from sit_atconv import Interpolant, InterpolantLoss, InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline
from sit_atconv.evaluation.likelihood import log_likelihood
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler

SCALE = 4.0  # a power of two, so that the units change without rounding


@pytest.fixture
def noise():
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def model_fn(x, t, *_):
    return torch.sin(x) + t


def in_other_units(x, t, *_):
    """What the model says of x in units of the noise."""
    return model_fn(SCALE * x, t) / SCALE


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
@pytest.mark.parametrize(
    "scheduler_class, options",
    [
        (InterpolantODEScheduler, dict(solver="heun")),
        (InterpolantSDEScheduler, dict(diffusion_form="sigma")),
        (InterpolantSDEScheduler, dict(solver="heun", diffusion_form="constant", last_step="tweedie")),
        (InterpolantSDEScheduler, dict(diffusion_form="sbdm", last_step="euler")),
    ],
)
def test_it_is_the_flow_of_data_in_units_of_the_noise(path, prediction, scheduler_class, options, noise):
    def solve(scale, model, latents):
        scheduler = scheduler_class(path=path, prediction=prediction, noise_scale=scale, **options)
        assert scheduler.init_noise_sigma == scale
        return scheduler.solve(model, latents, 6, generator=torch.Generator().manual_seed(1))

    expected = SCALE * solve(1.0, in_other_units, noise)
    torch.testing.assert_close(solve(SCALE, model_fn, SCALE * noise), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
def test_the_score_is_that_of_gaussian_data_with_this_noise(path, prediction):
    """Data N(m, d²): x_t is normal, and its score is known."""
    m, d, s = 0.7, 0.5, 3.0
    interpolant = Interpolant(path, prediction, s)
    t, x = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)[:, None], torch.linspace(-3, 3, 5, dtype=torch.float64)
    alpha, sigma = interpolant.alpha(t), interpolant.sigma(t)
    score = -(x - alpha * m) / (alpha**2 * d**2 + sigma**2 * s**2)
    x_0 = -sigma * s**2 * score  # E[x_0 | x_t], by Tweedie's formula
    x_1 = (x - sigma * x_0) / alpha
    velocity = interpolant.d_alpha(t) * x_1 + interpolant.d_sigma(t) * x_0
    output = {"velocity": velocity, "noise": x_0, "data": x_1}[prediction]
    x_t = x.expand(7, 5)
    torch.testing.assert_close(interpolant.to_score(output, x_t, t), score)
    torch.testing.assert_close(interpolant.to_velocity(output, x_t, t), velocity)


def test_the_loss_draws_this_noise():
    loss = InterpolantLoss(Interpolant(prediction="noise", noise_scale=3.0))
    x_1 = torch.zeros(64, 1, 16, 16)
    error = loss(lambda x, t: torch.zeros_like(x), x_1, generator=torch.Generator().manual_seed(0))
    assert error.mean() == pytest.approx(9, rel=0.05)  # of the noise itself


def test_the_likelihood_is_that_of_this_noise(noise):
    """Without a velocity, data is distributed as noise is."""
    scheduler = InterpolantODEScheduler(noise_scale=3.0)
    log_p, latents = log_likelihood(scheduler, lambda x, t: 0 * x, noise, 2)
    torch.testing.assert_close(latents, noise)
    torch.testing.assert_close(log_p, torch.distributions.Normal(0, 3.0).log_prob(noise).flatten(1).sum(1))


@pytest.mark.parametrize("scheduler_class", [InterpolantODEScheduler, InterpolantSDEScheduler, MeanFlowScheduler])
def test_a_pipeline_keeps_and_applies_it(scheduler_class, tiny_pipeline, tmp_path):
    overrides = dict(step_conditioning="span") if scheduler_class is MeanFlowScheduler else {}
    tiny_pipeline(scheduler_class(noise_scale=3.0), **overrides).save_pretrained(tmp_path / "pipeline")
    pipeline = SiTPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.noise_scale == 3.0
    options = dict(num_inference_steps=2, output_type="pt")
    drawn = pipeline([1, 2], generator=torch.Generator().manual_seed(5), **options).images
    generator = torch.Generator().manual_seed(5)
    latents = 3.0 * torch.randn(pipeline.latents_shape(2, 8, 8), generator=generator)
    assert torch.equal(drawn, pipeline([1, 2], latents=latents, generator=generator, **options).images)
    assert InterpolantSDEScheduler.from_config(pipeline.scheduler.config).config.noise_scale == 3.0


def test_schedulers_of_diffusers_refuse_it(tiny_pipeline):
    pipeline = tiny_pipeline(InterpolantODEScheduler(noise_scale=2.0))
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"noise_scale=2\.0: .*InterpolantODEScheduler\.from_config"):
        pipeline([1], num_inference_steps=2)
    pipeline.scheduler = InterpolantODEScheduler.from_config(pipeline.scheduler.config)
    assert pipeline.scheduler.init_noise_sigma == 2.0


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, "2", None])
def test_scales_that_no_noise_can_have(scale):
    with pytest.raises(ValueError, match="noise_scale="):
        Interpolant(noise_scale=scale)


def test_score_prediction_has_noise_of_scale_one():
    with pytest.raises(ValueError, match=r"noise_scale=2\.0: prediction=score .*use velocity, noise or data"):
        InterpolantODEScheduler(prediction="score", noise_scale=2.0)
