"""MeanFlow's loss: on Gaussian data, where the mean velocity is known; and its parts."""

import math

import pytest
import torch

from sit_atconv.flow.interpolants import Interpolant, expand_like
from sit_atconv.flow.losses import InterpolantLoss
from sit_atconv.flow.mean_flow import MeanFlowLoss, is_span_at, total_derivative

MEAN, SPREAD = 0.7, 0.4  # of the data, in each dimension
B = 6


def deviation(t: torch.Tensor) -> torch.Tensor:
    """Standard deviation of x_t = t·x_1 + (1 − t)·x_0."""
    return (t.square() * SPREAD**2 + (1 - t).square()).sqrt()


def exact_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x_1 − x_0 | x_t]: the derivative by t of t·mean + deviation(t)·z, for the z that leads to x."""
    t = expand_like(t, x)
    slope = (t * SPREAD**2 - (1 - t)) / deviation(t)
    return MEAN + slope * (x - t * MEAN) / deviation(t)


def exact_mean_velocity(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """(x_s − x_t)/(s − t) on the line x_τ = τ·mean + deviation(τ)·z; the velocity if s = t."""
    t_, s_ = expand_like(t, x), expand_like(s, x)
    z = (x - t_ * MEAN) / deviation(t_)
    mean = MEAN + (deviation(s_) - deviation(t_)) * z / (s_ - t_)
    return torch.where(s_ == t_, exact_velocity(x, t), mean)


def exact_network(x, t, s, rows, unconditional=False):
    return exact_mean_velocity(x, t, s)


def exact_teacher(x, t, s, rows, unconditional=False):
    return exact_velocity(x, t)


def batch(dtype: torch.dtype = torch.float64, size: int = B):
    generator = torch.Generator().manual_seed(0)
    x_1 = MEAN + SPREAD * torch.randn(size, 2, 3, generator=generator, dtype=dtype)
    x_0 = torch.randn(size, 2, 3, generator=generator, dtype=dtype)
    t = 0.6 * torch.rand(size, generator=generator, dtype=dtype)
    s = t + 0.1 + 0.3 * torch.rand(size, generator=generator, dtype=dtype)
    spans = torch.arange(1, size, 2)  # the others have s = t
    is_span = torch.zeros(size, dtype=torch.bool).index_fill_(0, spans, True)
    return x_1, x_0, t, torch.where(is_span, s, t), spans


@pytest.mark.parametrize(("derivative", "tolerance"), [("jvp", 1e-12), ("difference", 1e-5)])
def test_identity_on_gaussian_data(derivative, tolerance):
    """u = v + (s − t)·du/dt, along the velocity of the flow."""
    x_1, x_0, t, s, _ = batch()
    s = t + 0.3
    x = Interpolant().interpolate(x_0, x_1, t)
    v = exact_velocity(x, t)
    du_dt = total_derivative(exact_mean_velocity, x, t, s, v, derivative)
    target = v + expand_like(s - t, x) * du_dt
    torch.testing.assert_close(target, exact_mean_velocity(x, t, s), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("velocity", ["teacher", "model"])
def test_the_target_of_an_exact_network_is_itself(velocity):
    """With a teacher, row by row. With the data's velocity in the target, only its noise is left, as in a flow."""
    x_1, x_0, t, s, spans = batch()
    loss_fn = MeanFlowLoss(Interpolant(), velocity)
    target = loss_fn.target(exact_network, x_1, x_0, t, s, spans, teacher=exact_teacher)
    x_t = Interpolant().interpolate(x_0, x_1, t)
    noise = 0 if velocity == "teacher" else (x_1 - x_0) - exact_velocity(x_t, t)
    torch.testing.assert_close(target, exact_mean_velocity(x_t, t, s) + noise)


def test_data_and_model_tangents_have_the_same_expectation():
    """du/dt is linear in the velocity, so noise in it averages out, if x_t is the same."""
    generator, size = torch.Generator().manual_seed(1), 200_000
    t, s = torch.full((size,), 0.3, dtype=torch.float64), torch.full((size,), 0.8, dtype=torch.float64)
    x_t = torch.tensor(0.9, dtype=torch.float64)  # what all pairs of data and noise are interpolated to
    variance = deviation(t[0]) ** 2
    gain = t[0] * SPREAD**2 / variance
    x_1 = MEAN + gain * (x_t - t[0] * MEAN)
    x_1 = x_1 + SPREAD * (1 - t[0]) / variance.sqrt() * torch.randn(size, 1, generator=generator, dtype=torch.float64)
    x_0 = (x_t - t[0] * x_1) / (1 - t[0])
    loss_fn = MeanFlowLoss(Interpolant(), "data")
    target = loss_fn.target(exact_network, x_1, x_0, t, s, torch.arange(size))
    expected = exact_mean_velocity(x_t.expand(1, 1), t[:1], s[:1]).item()
    assert target.std() > 0.2
    assert target.mean().item() == pytest.approx(expected, abs=5 * target.std().item() / math.sqrt(size))


@pytest.mark.slow
@pytest.mark.parametrize("velocity", ["data", "model", "teacher"])
def test_training_finds_the_mean_velocity(velocity):
    """A small network that is trained from nothing makes the whole step from noise to data at once."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(3, 48), torch.nn.SiLU(), torch.nn.Linear(48, 48), torch.nn.SiLU(), torch.nn.Linear(48, 1)
    )

    def network(x, t, s, rows=None, unconditional=False):
        return layers(torch.stack([x[:, 0], t, s - t], dim=1))

    loss_fn = MeanFlowLoss(Interpolant(), velocity)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(layers.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        x_0 = torch.randn(256, 1, generator=generator)
        x_1 = MEAN + SPREAD * torch.randn(256, 1, generator=generator)
        is_span = is_span_at(torch.arange(256), 0.5)
        t, s = loss_fn.times_from_normal(*torch.randn(2, 256, generator=generator), is_span)
        loss = loss_fn(network, network, x_1, x_0, t, s, is_span.nonzero()[:, 0], teacher=exact_teacher).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x = torch.linspace(-2, 2, 41)[:, None]
    zero, one = torch.zeros(41), torch.ones(41)
    error = (network(x, zero, one) - exact_mean_velocity(x, zero, one)).square().mean().sqrt()
    assert error < 0.1, error  # the data spread by 0.4
    assert (exact_velocity(x, zero) - exact_mean_velocity(x, zero, one)).square().mean().sqrt() > 0.4


def test_only_spans_are_differentiated():
    x_1, x_0, t, s, spans = batch()
    calls = []

    def network(x, t, s, rows, unconditional=False):
        calls.append((len(x), (t == s).all().item(), rows))
        return exact_mean_velocity(x, t, s)

    MeanFlowLoss(Interpolant(), "data").target(network, x_1, x_0, t, s, spans)
    assert [(size, is_velocity) for size, is_velocity, _ in calls] == [(3, False)]
    assert torch.equal(calls[0][2], spans)
    calls.clear()
    target = MeanFlowLoss(Interpolant(), "model").target(network, x_1, x_0, t, t, spans[:0])
    assert not calls  # not even with an empty batch, which convolutions refuse
    assert torch.equal(target, x_1 - x_0)


def test_without_spans_it_is_the_loss_of_a_flow():
    x_1, x_0, t, _, spans = batch(torch.float32)
    errors = MeanFlowLoss(Interpolant())(
        lambda x, t, s: 2 * x, exact_network, x_1, x_0, t, t, spans[:0], guided=torch.ones(B, dtype=torch.bool)
    )
    torch.testing.assert_close(errors, InterpolantLoss(Interpolant())(lambda x, t: 2 * x, x_1, x_0, t))


def test_no_gradient_goes_through_the_target():
    x_1, x_0, t, s, spans = batch(torch.float32)
    scale = torch.ones((), requires_grad=True)

    def network(x, t, s, rows=None, unconditional=False):
        return scale * exact_mean_velocity(x, t, s)

    loss_fn = MeanFlowLoss(Interpolant())
    target = loss_fn.target(network, x_1, x_0, t, s, spans)
    errors = loss_fn(network, network, x_1, x_0, t, s, spans)
    errors.sum().backward()
    u = exact_mean_velocity(Interpolant().interpolate(x_0, x_1, t), t, s)
    torch.testing.assert_close(errors.detach(), (u - target).square().flatten(1).mean(1))
    torch.testing.assert_close(scale.grad, (2 * (u - target) * u).flatten(1).mean(1).sum())


def constants(cond: float, weak: float):
    """A network that returns `cond`, and `weak` without labels, everywhere."""

    def network(x, t, s, rows, unconditional=False):
        return torch.full_like(x, weak if unconditional else cond)

    return network


@pytest.mark.parametrize(
    ("scale", "mix", "expected"),
    [
        (3.0, None, lambda v: v + (1 - 1 / 3) * (5 - 2)),  # improved MeanFlow
        (3.0, 0.0, lambda v: 3 * v - 2 * 2),  # MeanFlow, Equation 13
        (2.5, 0.92, lambda v: 0.2 * v + 0.92 * 5 - 0.12 * 2),  # MeanFlow, the setting of its XL/2
    ],
)
def test_guidance_in_the_target(scale, mix, expected):
    """Where it applies; the data's velocity is left where a label is dropped."""
    x_1, x_0, t, _, spans = batch()
    guided = torch.arange(B) % 3 > 0
    loss_fn = MeanFlowLoss(Interpolant(), guidance_scale=scale, guidance_mix=mix)
    target = loss_fn.target(constants(5, 2), x_1, x_0, t, t, spans[:0], guided)
    v = x_1 - x_0
    torch.testing.assert_close(target, torch.where(expand_like(guided, v), expected(v), v))
    assert torch.equal(loss_fn.target(constants(5, 2), x_1, x_0, t, t, spans[:0]), v)


def test_guidance_of_a_teacher():
    x_1, x_0, t, _, spans = batch()
    guided = torch.arange(B) % 3 > 0
    loss_fn = MeanFlowLoss(Interpolant(), "teacher", guidance_scale=3.0)
    target = loss_fn.target(constants(0, 0), x_1, x_0, t, t, spans[:0], guided, teacher=constants(5, 2))
    assert target[:, 0, 0].tolist() == [5, 11, 11, 5, 11, 11]


@pytest.mark.parametrize(("mix", "weights"), [(None, (1, 2 / 3, -2 / 3)), (0.5, (1.5, 0.5, -1.0))])
def test_guidance_is_where_a_network_agrees_with_itself(mix, weights):
    """A network that has learnt this target predicts weak + scale·(v − weak) on average."""
    v, weak, scale = 0.3, -1.1, 3.0
    guided = weak + scale * (v - weak)
    assert weights[0] * v + weights[1] * guided + weights[2] * weak == pytest.approx(guided)
    x_1, x_0, t, _, spans = batch()
    x_0 = x_1 - v
    loss_fn = MeanFlowLoss(Interpolant(), guidance_scale=scale, guidance_mix=mix)
    target = loss_fn.target(constants(guided, weak), x_1, x_0, t, t, spans[:0], torch.ones(B, dtype=torch.bool))
    torch.testing.assert_close(target, torch.full_like(target, guided))


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 1 / 3, 0.75, 1])
def test_spans_are_a_share_of_any_run_of_samples(share):
    spans = is_span_at(torch.arange(10_000), share)
    for start, length in ((0, 64), (7, 100), (4_000, 6_000)):
        assert abs(spans[start : start + length].sum().item() - share * length) <= 1
    assert torch.equal(spans[64:128], is_span_at(torch.arange(64, 128), share))
    assert is_span_at(torch.arange(2**40, 2**40 + 8), 0.25).sum() == 2


@pytest.mark.parametrize("data_end_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("time_sampling", ["uniform", "logit-normal"])
def test_distribution_of_times(time_sampling, data_end_share):
    """t of a flow is that of `InterpolantLoss`; a span is two times in order, or ends at the data."""
    generator, size = torch.Generator().manual_seed(0), 100_000
    z, z_end = torch.randn(2, size, generator=generator)
    is_span = torch.arange(size) % 2 == 0
    loss_fn = MeanFlowLoss(Interpolant(), time_sampling=time_sampling, data_end_share=data_end_share)
    times = InterpolantLoss(Interpolant(), time_sampling=time_sampling).time_from_normal
    t, s = loss_fn.times_from_normal(z, z_end, is_span)
    assert torch.equal(t[~is_span], times(z)[~is_span]) and torch.equal(s[~is_span], t[~is_span])
    assert (s >= t).all() and t.min() >= 0 and s.max() <= 1
    ends_at_data = s[is_span] == 1
    assert ends_at_data.float().mean().item() == pytest.approx(data_end_share, abs=0.01)
    pairs = torch.stack([t[is_span], s[is_span]])[:, ~ends_at_data]
    if data_end_share < 1:
        expected = torch.stack([times(torch.randn(size, generator=generator)) for _ in range(2)]).sort(dim=0)[0]
        levels = torch.tensor([0.1, 0.5, 0.9])
        torch.testing.assert_close(pairs.quantile(levels, dim=1), expected.quantile(levels, dim=1), rtol=0, atol=0.01)
    if data_end_share > 0:
        torch.testing.assert_close(t[is_span][ends_at_data], times(z)[is_span][ends_at_data])


def test_adaptive_weights():
    errors = torch.tensor([0.001, 0.5, 4.0], requires_grad=True)
    assert torch.equal(MeanFlowLoss(Interpolant()).weights(errors), torch.ones(3))
    weights = MeanFlowLoss(Interpolant(), adaptive_power=0.5).weights(errors)
    torch.testing.assert_close(weights, torch.tensor([0.002, 0.501, 4.001]) ** -0.5)
    assert not weights.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_differences_are_refused_in_half_precision(dtype):
    x_1, x_0, t, s, _ = batch(torch.float32)
    with pytest.raises(ValueError, match="derivative='difference' needs float32"):
        total_derivative(exact_mean_velocity, x_0.to(dtype), t, s, x_1.to(dtype), "difference")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="needs float32"):
        total_derivative(exact_mean_velocity, x_0, t, s, x_1, "difference")


@pytest.mark.parametrize(
    ("interpolant", "arguments", "message"),
    [
        (Interpolant("gvp"), {}, "path=gvp, prediction=velocity: MeanFlow is trained on the linear path"),
        (Interpolant(prediction="data"), {}, "prediction=data"),
        (Interpolant(), dict(velocity="noise"), "velocity='noise'"),
        (Interpolant(), dict(derivative="exact"), "derivative='exact'"),
        (Interpolant(), dict(data_end_share=1.5), "data_end_share=1.5"),
        (Interpolant(), dict(adaptive_power=-1), "adaptive_power=-1"),
        (Interpolant(), dict(guidance_scale=0), "guidance_scale=0"),
        (Interpolant(), dict(guidance_mix=1.0), "guidance_mix=1.0"),
        (Interpolant(), dict(time_sampling="beta"), "time_sampling='beta'"),
    ],
)
def test_arguments_out_of_range(interpolant, arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanFlowLoss(interpolant, **arguments)


@pytest.mark.parametrize("step_conditioning", ["span", "decoupled"])
@pytest.mark.parametrize("mixer", ["atconv", "attention", "hybrid"])
def test_derivative_of_the_transformer(mixer, step_conditioning, tiny_transformer, assert_close):
    """In float64, forward mode against reverse mode: ⟨w, du/dt⟩ = ⟨∂⟨w, u⟩/∂x, v⟩ + ∂⟨w, u⟩/∂t for any w."""
    model = tiny_transformer(mixer=mixer, step_conditioning=step_conditioning, num_layers=3).double()
    generator = torch.Generator().manual_seed(0)
    x, v, w = torch.randn(3, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.rand(4, generator=generator, dtype=torch.float64)
    s, y = t + 0.3, torch.arange(4)

    def mean_velocity(x, t, s):
        return model(x, t, y, end_timestep=s).sample

    du_dt = total_derivative(mean_velocity, x, t, s, v)
    assert not du_dt.requires_grad
    x_, t_ = x.clone().requires_grad_(), t.clone().requires_grad_()
    gradient_x, gradient_t = torch.autograd.grad((mean_velocity(x_, t_, s) * w).sum(), (x_, t_))
    expected = (gradient_x * v).flatten(1).sum(1) + gradient_t
    assert_close((du_dt * w).flatten(1).sum(1), expected, 1e-6)  # times are embedded in float32
    for part in (gradient_x.abs().sum(), gradient_t.abs().sum()):
        assert part > 1e-3
    difference = total_derivative(mean_velocity, x, t, s, v, "difference")
    assert_close(difference, du_dt, 1e-2)
