import math

import pytest
import torch

from sit_atconv import InterpolantODEScheduler
from sit_atconv.evaluation.likelihood import bits_per_dimension, log_likelihood
from sit_atconv.flow.interpolants import expand_like

MEAN, STD = 0.3, 0.5


def gaussian_velocity(interpolant):
    """The exact velocity for data N(MEAN, STD²)."""

    def velocity(x, t):
        t = expand_like(t, x)
        alpha, sigma = interpolant.alpha(t), interpolant.sigma(t)
        residual = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x_1 = MEAN + alpha * STD**2 * residual
        return interpolant.d_alpha(t) * x_1 + interpolant.d_sigma(t) * sigma * residual

    return velocity


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
@pytest.mark.parametrize("path, tolerance", [("linear", 1e-4), ("gvp", 1e-4), ("vp", 2e-2)])  # VP stops at t = 0.999
def test_gaussian_log_density(path, tolerance, divergence):
    scheduler = InterpolantODEScheduler(path, solver="dopri5", rtol=1e-5)
    x = MEAN + STD * torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    model_fn = gaussian_velocity(scheduler.interpolant)
    with torch.no_grad():
        log_p, latents = log_likelihood(scheduler, model_fn, x, divergence=divergence)
    exact = torch.distributions.Normal(MEAN, STD).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(log_p, exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(latents, (x - MEAN) / STD, rtol=0, atol=tolerance)


def test_hutchinson_estimate_is_unbiased_and_fixed_per_solve():
    """For a velocity A·x with a full matrix the estimate varies with the probe, with the exact trace as its mean."""
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler = InterpolantODEScheduler(solver="rk4")

    def model_fn(x, t):
        return (x.flatten(1) @ matrix.T).view_as(x)

    x = torch.zeros(4000, 1, 2, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    exact, _ = log_likelihood(scheduler, model_fn, x[:1], 8, "exact")
    estimates, _ = log_likelihood(scheduler, model_fn, x, 8, generator=generator)
    assert estimates.std() > 0.1
    assert abs(estimates.mean() - exact[0]) < 4 * estimates.std() / math.sqrt(len(x))
    again, _ = log_likelihood(scheduler, model_fn, x, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(estimates, again)


def test_network_calls_stay_near_those_of_sampling(tiny_transformer):
    transformer = tiny_transformer()
    scheduler = InterpolantODEScheduler(solver="dopri5")
    generator = torch.Generator().manual_seed(0)
    channels, size = transformer.config.in_channels, transformer.config.sample_size
    noise = torch.randn(2, channels, size, size, generator=generator)
    labels = torch.tensor([0, 1])

    def model_fn(x, t):
        return transformer(x, t, labels).sample

    with torch.no_grad():
        samples = scheduler.solve(model_fn, noise, 1)
        sampling_calls = scheduler.num_model_calls
        log_p, latents = log_likelihood(scheduler, model_fn, samples, generator=generator)
    assert torch.isfinite(log_p).all()
    assert scheduler.num_model_calls <= 3 * sampling_calls
    torch.testing.assert_close(latents, noise, rtol=0, atol=0.02)


def test_bits_per_dimension_of_uniform_data():
    """Uniform density over 256 levels of [−1, 1] costs 8 bits; the outer bins reach half a level beyond."""
    width = 2 * 256 / 255
    log_p = torch.tensor([-12 * math.log(width)])
    torch.testing.assert_close(bits_per_dimension(log_p, dims=12), torch.tensor([8.0]))


def test_unknown_divergence():
    with pytest.raises(ValueError, match="divergence='skilling'"):
        log_likelihood(InterpolantODEScheduler(), lambda x, t: x, torch.zeros(1, 1, 2, 2), divergence="skilling")
