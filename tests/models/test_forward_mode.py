"""Directional derivatives of whole networks: no operation on the way drops its share in silence.

MeanFlow (arXiv 2505.13447) trains on them, and a missing share is no error: it is a slightly wrong derivative.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from sit_atconv.models.atconv import ATConv
from sit_atconv.models.embeddings import _cached_position_embedding
from sit_atconv.ops import depthwise_conv_triton
from sit_atconv.ops.pooling import pool_by_product

# Steps of the central differences. The network reads t in float32, which holds the steps exactly; but the sines of t
# are rounded to float32, so their step is larger.
STEP_OF_X, STEP_OF_T = 2.0**-9, 2.0**-5
OPTIONS = [
    {},
    {"mixer": "attention"},
    {"mixer": "attention", "qk_norm": True},
    {"mixer": "hybrid"},
    {"mixer": ["atconv", "attention"]},
    {"kernel_activation": "silu"},
    {"kernel_activation": "gelu"},
    {"kernel_pool": "grid"},
    {"kernel_size": 5},
    {"kernel_size": 1},
    {"kernel_groups": 2, "kernel_dilation": [1, 2], "channel_gate": True, "average_branch": True},
    {"mlp_depthwise": True},
    {"num_layers": 3, "middle_layers": 1, "middle_attention_heads": 3, "mixer": ["atconv", "attention", "atconv"]},
    {"position_embedding": "sincos"},
    {"mixer": "attention", "position_embedding": "none"},
    {"patch_size": 1},
    {"out_channels": 6},
    {"class_dropout_prob": 0.0},
    {"timestep_at_noise": 1.0, "timestep_at_data": 0.0},
]
needs_triton = pytest.mark.skipif(depthwise_conv_triton.triton is None, reason="Triton is not installed")


def draw(dtype: torch.dtype = torch.float64, B: int = 2) -> tuple[torch.Tensor, ...]:
    """(x_t, t, labels, tangent of x_t, tangent of t); the times are multiples of 2⁻⁶, and so is their tangent."""
    generator = torch.Generator().manual_seed(0)
    x, dx = torch.randn(2, B, 3, 8, 12, generator=generator, dtype=torch.float64).to(dtype).unbind()
    t = torch.tensor([0.25, 0.734375])[:B]
    return x, t, torch.arange(B), dx, torch.ones(B)


def by_func(function, x, t, dx, dt):
    return torch.func.jvp(function, (x, t), (dx, dt))[1]


def by_dual_numbers(function, x, t, dx, dt):
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(x, dx), forward_ad.make_dual(t, dt))
        return forward_ad.unpack_dual(out).tangent


def by_differences(function, step):
    """f′(0) of a function of one number by central differences of two steps, extrapolated: an error of fourth order."""

    def central(h):
        return (function(h) - function(-h)) / (2 * h)

    return (4 * central(step / 2) - central(step)) / 3


def with_large_times(model):
    """Let the output depend on t as much as on x_t."""
    for layer in (model.time_embed.linear_1, model.time_embed.linear_2):
        layer.weight.data.mul_(10)
    return model


def check_derivative(derivative, function, x, t, dx, dt, assert_close):
    """Compare the derivatives by x and by t with differences, and that by both with their sum."""
    by_x, by_t = derivative(function, x, t, dx, 0 * dt), derivative(function, x, t, 0 * dx, dt)
    assert by_t.abs().max() > 0.03 * by_x.abs().max() > 0.01
    assert_close(by_x, by_differences(lambda h: function(x + h * dx, t), STEP_OF_X), 2e-7)
    assert_close(by_t, by_differences(lambda h: function(x, t + h * dt), STEP_OF_T), 2e-5)
    assert_close(derivative(function, x, t, dx, dt), by_x + by_t, 1e-6)


@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transformer(options, derivative, tiny_transformer, assert_close):
    model = with_large_times(tiny_transformer(**options)).double()
    x, t, labels, dx, dt = draw()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        check_derivative(derivative, lambda x, t: model(x, t, labels).sample, x, t, dx, dt, assert_close)


@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_float32_where_onednn_computes_linear_layers(mixer, derivative, tiny_transformer, assert_close, monkeypatch):
    monkeypatch.setattr("sit_atconv.ops.linear_onednn.WORTHWHILE_PRODUCTS", 0)
    x, t, labels, dx, dt = draw(torch.float32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model = tiny_transformer(mixer=mixer)
        actual = derivative(lambda x, t: model(x, t, labels).sample, x, t, dx, dt)
        model.double()
        exact = by_func(lambda x, t: model(x, t, labels).sample, x.double(), t, dx.double(), dt)
    assert_close(actual, exact, 1e-5)


@needs_triton
@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
def test_atconv_computed_as_on_a_gpu(derivative, tiny_transformer, assert_close, monkeypatch):
    """The Triton operator, and pooling as a product."""

    def triton_conv(tokens, kernels, grid, dilation):
        return torch.ops.sit_atconv.depthwise_conv_v3(tokens, kernels, *grid, dilation)

    x, t, labels, dx, dt = draw(torch.float32, B=1)
    x, dx = x[..., :4, :6], dx[..., :4, :6]
    model, exact_model = with_large_times(tiny_transformer()), with_large_times(tiny_transformer()).double()
    with torch.no_grad():
        exact = by_func(lambda x, t: exact_model(x, t, labels).sample, x.double(), t, dx.double(), dt)
    monkeypatch.setattr("sit_atconv.models.atconv.pool_tokens", pool_by_product)
    monkeypatch.setattr("sit_atconv.models.atconv.depthwise_conv", triton_conv)
    with torch.no_grad():
        actual = derivative(lambda x, t: model(x, t, labels).sample, x, t, dx, dt)
    assert_close(actual, exact, 1e-5)


@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
def test_modulations_ahead_of_the_loop(derivative, tiny_transformer, assert_close):
    model = with_large_times(tiny_transformer()).double()
    x, t, labels, dx, dt = draw(B=1)

    def function(x, t):
        return model(x, None, None, modulation=model.modulations(t, labels)[0]).sample

    with torch.no_grad():
        check_derivative(derivative, function, x, t, dx, dt, assert_close)


@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
@pytest.mark.parametrize("dilation", [1, 2])
def test_attnet(derivative, dilation, tiny_attnet, assert_close):
    model = tiny_attnet().double()
    for module in model.modules():
        if isinstance(module, ATConv):
            module.dilations = [dilation]
    generator = torch.Generator().manual_seed(0)
    x, dx = torch.randn(2, 1, 3, 64, 64, generator=generator, dtype=torch.float64).unbind()
    with torch.no_grad():
        actual = derivative(lambda x, _: model(x), x, torch.zeros(1), dx, torch.zeros(1))
        assert_close(actual, by_differences(lambda h: model(x + h * dx), STEP_OF_X), 1e-6)


def test_nothing_of_a_transform_is_kept(tiny_transformer):
    """The position embedding that a later call finds is a tensor, not the wrapper of a transform that is over."""
    _cached_position_embedding.cache_clear()
    model = tiny_transformer(position_embedding="sincos")
    x, t, labels, dx, dt = draw(torch.float32)
    with torch.no_grad():
        by_func(lambda x, t: model(x, t, labels).sample, x, t, dx, dt)
        assert _cached_position_embedding.cache_info().currsize == 0
        model(x, t, labels)
    assert _cached_position_embedding.cache_info().currsize == 1
