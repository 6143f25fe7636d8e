"""The training objective against the reference's numbers and its own definition."""

import itertools
import math

import pytest
import torch
from scipy import stats

from sit_atconv import Interpolant, InterpolantLoss
from sit_atconv.flow.choices import WEIGHTINGS
from sit_atconv.flow.interpolants import PREDICTIONS

PATHS = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}  # ours: the reference's
PARITY = [
    (path, prediction, weighting)
    for path, prediction, weighting in itertools.product(PATHS, ("velocity", "score", "noise"), WEIGHTINGS)
    if prediction != "velocity" or weighting == "none"
]


@pytest.mark.parametrize(("path", "prediction", "weighting"), PARITY)
def test_parity(path, prediction, weighting, transport, transport_model_fn, assert_close):
    loss = InterpolantLoss(Interpolant(path, prediction), weighting)
    actual = loss(transport_model_fn, transport["x1"], transport["x0"], transport["t"])
    assert_close(actual, transport[f"loss.{PATHS[path]}.{prediction}.{weighting}"], 1e-5)


def test_parity_covers_every_entry(transport):
    covered = {f"loss.{PATHS[path]}.{prediction}.{weighting}" for path, prediction, weighting in PARITY}
    assert covered == {key for key in transport if key.startswith("loss.")}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_the_target_has_no_loss(path, prediction):
    interpolant = Interpolant(path, prediction)
    x_0, x_1, t = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.rand(4) * 0.9 + 0.05
    target = interpolant.target(x_0, x_1, t)
    for weighting in WEIGHTINGS[:1] if prediction == "velocity" else WEIGHTINGS:
        loss = InterpolantLoss(interpolant, weighting)
        torch.testing.assert_close(loss(lambda x, t: target, x_1, x_0, t), torch.zeros(4), rtol=0, atol=1e-8)
        worse = loss(lambda x, t: target + 0.1, x_1, x_0, t)
        assert (worse > 1e-6).all()


def test_plain_velocity_loss_is_the_mean_squared_error():
    x_0, x_1, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3)
    loss = InterpolantLoss(Interpolant())(lambda x, t: 2 * x, x_1, x_0, t)
    x_t = t.view(3, 1, 1, 1) * x_1 + (1 - t.view(3, 1, 1, 1)) * x_0
    torch.testing.assert_close(loss, ((2 * x_t - (x_1 - x_0)) ** 2).mean((1, 2, 3)))


@pytest.mark.parametrize("prediction", ["score", "noise", "data"])
@pytest.mark.parametrize("path", PATHS)
def test_weightings_are_equivalent_regressions(path, prediction, assert_close):
    """ "velocity" is the error of the implied velocity, "likelihood" the score's error weighted with w (SBDM)."""
    interpolant = Interpolant(path, prediction)
    generator = torch.Generator().manual_seed(0)
    x_0, x_1, output = torch.randn(3, 5, 2, 3, 3, generator=generator, dtype=torch.float64).float()
    t = torch.rand(5, generator=generator) * 0.8 + 0.1
    x_t = interpolant.interpolate(x_0, x_1, t)

    def mean_square(x):
        return x.square().flatten(1).mean(1)

    velocity_error = interpolant.to_velocity(output, x_t, t) - interpolant.velocity(x_0, x_1, t)
    score_error = interpolant.to_score(output, x_t, t) + x_0 / interpolant.sigma(t).view(-1, 1, 1, 1)
    w = interpolant.diffusion(t, "sbdm")
    model_fn = lambda x, t: output  # noqa: E731
    assert_close(InterpolantLoss(interpolant, "velocity")(model_fn, x_1, x_0, t), mean_square(velocity_error), 1e-4)
    assert_close(InterpolantLoss(interpolant, "likelihood")(model_fn, x_1, x_0, t), w * mean_square(score_error), 1e-4)


def test_the_network_gets_the_noisy_sample_and_time():
    seen = {}

    def model_fn(x, t):
        seen.update(x=x, t=t)
        return x

    x_0, x_1, t = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([0.0, 1.0])
    InterpolantLoss(Interpolant())(model_fn, x_1, x_0, t)
    torch.testing.assert_close(seen["x"], torch.stack([x_0[0], x_1[1]]))
    assert seen["t"] is t


@pytest.mark.parametrize("time_sampling", ["uniform", "logit-normal"])
def test_deterministic_by_generator(time_sampling):
    loss = InterpolantLoss(Interpolant("gvp"), time_sampling=time_sampling)
    x_1 = torch.randn(4, 2, 3, 3)

    def draw(seed):
        return loss(lambda x, t: x, x_1, generator=torch.Generator().manual_seed(seed))

    global_state = torch.get_rng_state()
    torch.testing.assert_close(draw(0), draw(0), rtol=0, atol=0)
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_half_precision_inputs_give_a_float32_loss():
    x_1 = torch.randn(2, 1, 4, 4).bfloat16()
    loss = InterpolantLoss(Interpolant())(lambda x, t: x.bfloat16(), x_1)
    assert loss.dtype == torch.float32
    assert loss.shape == (2,)


@pytest.mark.parametrize("time_sampling", ["uniform", "logit-normal"])
@pytest.mark.parametrize("training_prediction", ["velocity", "noise"])
@pytest.mark.parametrize("path", PATHS)
def test_times_stay_in_the_training_interval(path, training_prediction, time_sampling):
    interpolant = Interpolant(path, training_prediction)
    loss = InterpolantLoss(interpolant, time_sampling=time_sampling, time_shift=3.0, train_eps=0.1)
    t = loss.sample_time(20_000, torch.Generator().manual_seed(0))
    start, end = interpolant.time_interval(0.1)
    assert t.dtype == torch.float32
    assert start <= t.min() < start + 0.05
    assert end - 0.15 < t.max() <= end


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("time_sampling", ["uniform", "logit-normal"])
def test_distribution_of_times(time_sampling, shift):
    """A shift divides the odds of data by its factor: logit(t) = logit(u) − log(shift)."""
    loss = InterpolantLoss(Interpolant(), time_sampling=time_sampling, time_shift=shift)
    t = loss.sample_time(20_000, torch.Generator().manual_seed(1)).double()
    logit = (torch.logit(t, eps=1e-9) + math.log(shift)).numpy()
    distribution = "logistic" if time_sampling == "uniform" else "norm"  # logit of a uniform variable is logistic
    assert stats.kstest(logit, distribution).pvalue > 1e-3


def test_shift_moves_towards_noise_and_keeps_the_ends():
    loss = InterpolantLoss(Interpolant(), time_shift=3.0)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    t = loss.time_from_normal(torch.special.ndtri(u))
    assert t[0] == 0
    assert t[-1] == 1
    assert (t[1:-1] < u[1:-1]).all()
    sigma = 1 - u  # SD3's formula, in its own time
    torch.testing.assert_close(1 - t, 3 * sigma / (1 + 2 * sigma))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_loss_and_gradient_are_finite_at_the_ends_of_the_interval(path, prediction, weighting):
    if prediction == "velocity" and weighting != "none":
        pytest.skip("velocity prediction takes no weighting")
    loss = InterpolantLoss(Interpolant(path, prediction), weighting)
    output = torch.randn(2, 1, 2, 2, requires_grad=True)
    value = loss(lambda x, t: output, torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor(loss.interval))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize(
    ("interpolant", "arguments", "field"),
    [
        (Interpolant(), dict(weighting="velocity"), "weighting='velocity'"),
        (Interpolant(), dict(weighting="likelihood"), "weighting='likelihood'"),
        (Interpolant("vp", "noise"), dict(weighting="snr"), "weighting='snr'"),
        (Interpolant(), dict(time_sampling="cosine"), "time_sampling='cosine'"),
        (Interpolant(), dict(time_shift=0.0), "time_shift=0.0"),
        (Interpolant(), dict(time_shift=-2.0), "time_shift=-2.0"),
        (Interpolant("vp"), dict(train_eps=0.7), "train_eps=0.7"),
        (Interpolant("vp"), dict(train_eps=-0.1), "train_eps=-0.1"),
    ],
)
def test_arguments_that_cannot_be_used(interpolant, arguments, field):
    with pytest.raises(ValueError, match=field):
        InterpolantLoss(interpolant, **arguments)


def test_an_output_that_would_be_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"output has the shape \(2, 1, 4, 4\)"):
        InterpolantLoss(Interpolant())(lambda x, t: x[:, :1], torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("time_shift", [1.0, 3.0])
def test_logits_of_times_have_the_mean_and_deviation_asked_for(time_shift):
    options = dict(time_sampling="logit-normal", time_shift=time_shift, time_mean=-0.8, time_std=0.5)
    t = InterpolantLoss(Interpolant(), **options).sample_time(20000, torch.Generator().manual_seed(0)).double()
    logits = torch.logit(t)
    assert logits.mean().item() == pytest.approx(-0.8 - math.log(time_shift), abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_a_floor_of_sigma_bounds_the_weight_near_the_data(path):
    """Above the floor, the error is that of the velocity; below it, and at t=1, sigma is the floor (JiT's loss)."""
    interpolant = Interpolant(path, "data")
    x_0, x_1, output = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0.3, 0.8, 0.99, 1.0])
    output.requires_grad_()
    loss = InterpolantLoss(interpolant, "velocity", sigma_floor=0.1).of_output(output, x_0, x_1, t)
    plain = InterpolantLoss(interpolant, "velocity").of_output(output, x_0, x_1, t)
    above = interpolant.sigma(t) > 0.1
    assert above.tolist()[0] and not above.tolist()[-1]
    torch.testing.assert_close(loss[above], plain[above])
    error = (output - x_1) * interpolant.determinant(t)[:, None, None, None] / 0.1
    torch.testing.assert_close(loss[~above], error.square().flatten(1).mean(1)[~above])
    loss.sum().backward()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(time_mean=0.5), "time_mean=0.5, time_std=1.0 are those of logit-normal times; also give"),
        (dict(time_sampling="logit-normal", time_std=0.0), "time_std=0.0 must be"),
        (dict(time_sampling="logit-normal", time_mean=math.nan), "time_mean=nan"),
        (dict(time_sampling="logit-normal", time_mean=50), "time_mean=50"),
        (dict(sigma_floor=0.05), "sigma_floor=0.05 bounds the error of prediction=data.* not of prediction=velocity"),
        (dict(sigma_floor=1.0), "sigma_floor=1.0 must be at least 0 and below 1"),
    ],
)
def test_options_of_times_and_floor_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        InterpolantLoss(Interpolant(), **options)
