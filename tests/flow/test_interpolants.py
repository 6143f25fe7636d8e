"""Paths and conversions against the reference's numbers, autograd, each other and closed forms."""

import math

import pytest
import torch

from sit_atconv import Interpolant
from sit_atconv.flow.interpolants import DIFFUSION_FORMS, PREDICTIONS, expand_like

PATHS = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}  # ours: the reference's
FORMS = {form: "SBDM" if form == "sbdm" else form for form in DIFFUSION_FORMS}
QUANTITIES = ("velocity", "score", "noise", "data")


def convert(interpolant: Interpolant, quantity: str, model_output, x_t, t):
    return getattr(interpolant, f"to_{quantity}")(model_output, x_t, t)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(64, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    x_0, x_1 = torch.randn(2, 64, 3, 2, generator=generator, dtype=torch.float64)
    return x_0, x_1, t


@pytest.mark.parametrize("path", PATHS)
def test_interpolate_and_velocity_parity(path, transport, assert_close):
    interpolant = Interpolant(path)
    x_0, x_1, t = transport["x0"], transport["x1"], transport["t"]
    assert_close(interpolant.interpolate(x_0, x_1, t), transport[f"xt.{PATHS[path]}"], 1e-5)
    assert_close(interpolant.velocity(x_0, x_1, t), transport[f"ut.{PATHS[path]}"], 1e-5)
    assert_close(interpolant.target(x_0, x_1, t), transport[f"ut.{PATHS[path]}"], 1e-5)


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
@pytest.mark.parametrize("path", PATHS)
def test_drift_and_score_parity(path, prediction, transport, transport_model_fn, assert_close):
    interpolant = Interpolant(path, prediction)
    x_t, t = transport[f"xt.{PATHS[path]}"], transport["t"]
    output = transport_model_fn(x_t, t)
    key = f"{PATHS[path]}.{prediction}"
    assert_close(interpolant.to_velocity(output, x_t, t), transport[f"drift.{key}"], 1e-5)
    assert_close(interpolant.to_score(output, x_t, t), transport[f"score.{key}"], 1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_diffusion_parity(path, form, transport, assert_close):
    expected = transport[f"diffusion.{PATHS[path]}.{FORMS[form]}"].flatten()
    assert_close(Interpolant(path).diffusion(transport["t"], form, norm=0.7), expected, 1e-5)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_round_trip(path, prediction, quantity, samples, assert_close):
    """From what the network should return, every quantity comes back as defined by x_0 and x_1."""
    x_0, x_1, t = samples
    interpolant = Interpolant(path, prediction)
    x_t = interpolant.interpolate(x_0, x_1, t)
    truth = {
        "velocity": interpolant.velocity(x_0, x_1, t),
        "score": -x_0 / interpolant.sigma(expand_like(t, x_0)),
        "noise": x_0,
        "data": x_1,
    }
    target = interpolant.target(x_0, x_1, t)
    assert_close(target, truth[prediction], 1e-12)
    assert_close(convert(interpolant, quantity, target, x_t, t), truth[quantity], 1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_time_without_batch_is_one_time_for_all(prediction, samples):
    x_0, x_1, _ = samples
    interpolant = Interpolant("gvp", prediction)
    t, ts = torch.tensor(0.3, dtype=torch.float64), torch.full((len(x_0),), 0.3, dtype=torch.float64)
    x_t = interpolant.interpolate(x_0, x_1, t)
    torch.testing.assert_close(x_t, interpolant.interpolate(x_0, x_1, ts))
    for quantity in QUANTITIES:
        torch.testing.assert_close(
            convert(interpolant, quantity, x_1, x_t, t), convert(interpolant, quantity, x_1, x_t, ts)
        )


@pytest.mark.parametrize("coefficient", ["alpha", "sigma"])
@pytest.mark.parametrize("path", PATHS)
def test_derivatives_equal_autograd(path, coefficient, samples):
    t = samples[2].clone().requires_grad_()
    interpolant = Interpolant(path)
    (expected,) = torch.autograd.grad(getattr(interpolant, coefficient)(t).sum(), t)
    torch.testing.assert_close(getattr(interpolant, f"d_{coefficient}")(t), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", ["gvp", "vp"])
def test_variance_preserving_paths_preserve_variance(path):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    interpolant = Interpolant(path)
    torch.testing.assert_close(interpolant.alpha(t) ** 2 + interpolant.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("path", PATHS)
def test_boundary_values(path):
    interpolant = Interpolant(path)
    start, end = torch.tensor(0.0), torch.tensor(1.0)
    # VP ends at exp(−∫β/2) = exp(−5.025) and not at 0
    assert interpolant.alpha(start).item() == pytest.approx(math.exp(-5.025) if path == "vp" else 0.0, rel=1e-6)
    assert interpolant.sigma(start).item() == pytest.approx(1.0, abs=3e-5)
    assert interpolant.alpha(end).item() == pytest.approx(1.0, abs=1e-7)
    assert interpolant.sigma(end).item() == 0.0


def test_vp_sigma_keeps_its_digits_near_data():
    t = 1 - torch.logspace(-5, -1, 20)
    interpolant = Interpolant("vp")
    torch.testing.assert_close(interpolant.sigma(t).double(), interpolant.sigma(t.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_velocity_prediction_is_exact_at_both_ends(path, samples, assert_close):
    """The conversions that divide by sigma or alpha on paper are written without those divisions."""
    x_0, x_1, _ = samples
    interpolant = Interpolant(path, "velocity")
    for t in (torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)):
        x_t = interpolant.interpolate(x_0, x_1, t)
        velocity = interpolant.velocity(x_0, x_1, t)
        assert_close(interpolant.to_noise(velocity, x_t, t), x_0, 1e-12)
        assert_close(interpolant.to_data(velocity, x_t, t), x_1, 1e-12)
    t = torch.tensor(0.0, dtype=torch.float64)
    assert_close(interpolant.to_score(interpolant.velocity(x_0, x_1, t), x_0, t), -x_0, 1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_target_and_velocity_are_finite_on_the_interval(path, prediction, training, samples):
    interpolant = Interpolant(path, prediction)
    interval = interpolant.time_interval(interpolant.default_eps(training))
    assert 0 <= interval[0] < 0.01
    assert 0.99 < interval[1] <= 1
    x_0, x_1 = samples[0].float(), samples[1].float()
    for end in interval:
        t = torch.tensor(end)
        x_t = interpolant.interpolate(x_0, x_1, t)
        target = interpolant.target(x_0, x_1, t)
        velocity = interpolant.to_velocity(target, x_t, t)
        assert torch.isfinite(target).all()
        torch.testing.assert_close(velocity, interpolant.velocity(x_0, x_1, t), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_default_cuts_are_those_of_sit(path, prediction):
    """As its `check_interval` chooses them for training and for sampling."""
    interpolant = Interpolant(path, prediction)
    plain = 0.0 if prediction == "velocity" else 1e-3
    assert interpolant.default_eps(training=True) == (1e-5 if path == "vp" else plain)
    assert interpolant.default_eps(training=False) == (1e-3 if path == "vp" else plain)


def test_only_velocity_on_linear_and_gvp_needs_no_cut():
    uncut = {
        (path, prediction)
        for path in PATHS
        for prediction in PREDICTIONS
        if Interpolant(path, prediction).time_interval(0.1) == (0.0, 1.0)
    }
    assert uncut == {("linear", "velocity"), ("gvp", "velocity")}


@pytest.mark.parametrize("path", PATHS)
def test_gaussian_data_in_closed_form(path, gaussian, samples, assert_close):
    """The velocity moves N(alpha·m, V_t) as it should, and the score is the gradient of its log density."""
    mean, std = 0.7, 0.4
    z, _, t = samples
    interpolant = Interpolant(path)
    t = expand_like(t, z).clone().requires_grad_()
    variance = interpolant.alpha(t) ** 2 * std**2 + interpolant.sigma(t) ** 2
    x_t = interpolant.alpha(t) * mean + variance.sqrt() * z  # z is constant along the flow
    _, velocity = torch.func.jvp(
        lambda s: (
            interpolant.alpha(s) * mean + (interpolant.alpha(s) ** 2 * std**2 + interpolant.sigma(s) ** 2).sqrt() * z
        ),
        (t.detach(),),
        (torch.ones_like(t),),
    )
    truth = gaussian(path, x_t.detach(), t.detach(), mean, std)
    assert_close(truth["velocity"], velocity, 1e-9)
    for prediction in PREDICTIONS:
        for quantity in QUANTITIES:
            converted = convert(
                Interpolant(path, prediction), quantity, truth[prediction], x_t.detach(), t.detach().flatten()
            )
            assert_close(converted, truth[quantity], 1e-9)


def test_vp_is_the_diffusion_of_score_sdes():
    """With β(s) = 0.1 + 19.9·s and s = 1 − t: alpha = exp(−½∫β), and the SBDM coefficient is β/2."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    s = 1 - t
    interpolant = Interpolant("vp")
    torch.testing.assert_close(interpolant.alpha(t), torch.exp(-0.5 * (0.1 * s + 19.9 * s**2 / 2)))
    torch.testing.assert_close(interpolant.diffusion(t, "sbdm"), (0.1 + 19.9 * s) / 2)


@pytest.mark.parametrize("form", DIFFUSION_FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_diffusion_is_finite_and_not_negative(path, form):
    start = 1e-3 if form == "sbdm" and path != "vp" else 0.0
    t = torch.linspace(start, 1, 101)
    w = Interpolant(path).diffusion(t, form)
    assert w.shape == t.shape
    assert torch.isfinite(w).all()
    assert (w >= 0).all()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Interpolant("cosine"), "path='cosine'"),
        (lambda: Interpolant("Linear"), "path='Linear'"),
        (lambda: Interpolant("linear", "epsilon"), "prediction='epsilon'"),
        (lambda: Interpolant().diffusion(torch.tensor(0.5), "SBDM"), "diffusion_form='SBDM'"),
        (lambda: Interpolant().diffusion(torch.tensor(0.5), norm=0.0), "diffusion_norm=0.0"),
        (lambda: Interpolant().diffusion(torch.tensor(0.5), norm=-1.0), "diffusion_norm=-1.0"),
        (lambda: Interpolant().diffusion(torch.tensor(0.5), norm=math.nan), "diffusion_norm=nan"),
    ],
)
def test_arguments_that_cannot_be_used(call, field):
    with pytest.raises(ValueError, match=field):
        call()
