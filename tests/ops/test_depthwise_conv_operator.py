"""Derivatives of the per-sample depthwise convolution other than plain gradients, for every way to compute it.

Without a GPU the Triton kernels run in Triton's interpreter (tests/conftest.py); with one they are compiled.
"""

import pytest
import torch
from torch.autograd import forward_ad

from sit_atconv.ops import depthwise_conv_triton
from sit_atconv.ops.depthwise_conv import (
    channels_last_depthwise_conv,
    depthwise_conv,
    naive_depthwise_conv,
    planes_depthwise_conv,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = (2, 3)
needs_triton = pytest.mark.skipif(depthwise_conv_triton.triton is None, reason="Triton is not installed")
PATHS = [naive_depthwise_conv, planes_depthwise_conv, channels_last_depthwise_conv, depthwise_conv]


def triton_conv(
    tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int] = GRID, dilation: int = 1
) -> torch.Tensor:
    return torch.ops.sit_atconv.depthwise_conv_v3(tokens, kernels, *grid, dilation)


def draw(grid=GRID, C=3, k=3, dtype=torch.float64, B=2) -> tuple[torch.Tensor, ...]:
    """(tokens, kernels, tangent of the tokens, tangent of the kernels)."""
    generator = torch.Generator().manual_seed(k)
    pairs = (
        torch.randn(2, B, grid[0] * grid[1], C, generator=generator),
        torch.randn(2, B, C, k * k, generator=generator),
    )
    (x, dx), (w, dw) = ((pair.to(DEVICE, dtype)).unbind() for pair in pairs)
    return x, w, dx, dw


def by_func(conv, x, w, dx, dw):
    """The directional derivative by torch.func.jvp; a tangent may be None."""
    if dx is None:
        return torch.func.jvp(lambda w: conv(x, w), (w,), (dw,))[1]
    if dw is None:
        return torch.func.jvp(lambda x: conv(x, w), (x,), (dx,))[1]
    return torch.func.jvp(conv, (x, w), (dx, dw))[1]


def by_dual_numbers(conv, x, w, dx, dw):
    with forward_ad.dual_level():
        x = x if dx is None else forward_ad.make_dual(x, dx)
        w = w if dw is None else forward_ad.make_dual(w, dw)
        return forward_ad.unpack_dual(conv(x, w)).tangent


def two_convolutions(x, w, dx, dw, grid=GRID, dilation=1):
    """conv(d_tokens, kernels) + conv(tokens, d_kernels) by the definition, in float64."""
    x, w, dx, dw = (None if a is None else a.double() for a in (x, w, dx, dw))
    parts = [] if dx is None else [naive_depthwise_conv(dx, w, grid, dilation)]
    parts += [] if dw is None else [naive_depthwise_conv(x, dw, grid, dilation)]
    return sum(parts)


@pytest.mark.parametrize("moves", ["tokens", "kernels", "both"])
@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
@pytest.mark.parametrize("conv", PATHS)
@pytest.mark.parametrize(("k", "dilation", "B"), [(1, 1, 2), (3, 1, 1), (3, 1, 3), (3, 2, 2), (5, 1, 2), (3, 3, 1)])
def test_forward_mode_is_two_convolutions(conv, derivative, moves, k, dilation, B):
    grid = (5, 4)
    x, w, dx, dw = draw(grid, 3, k, B=B)
    dx, dw = None if moves == "kernels" else dx, None if moves == "tokens" else dw
    actual = derivative(lambda x, w: conv(x, w, grid, dilation), x, w, dx, dw)
    torch.testing.assert_close(actual, two_convolutions(x, w, dx, dw, grid, dilation), rtol=1e-12, atol=1e-12)


@needs_triton
@pytest.mark.parametrize("moves", ["tokens", "kernels", "both"])
@pytest.mark.parametrize("derivative", [by_func, by_dual_numbers])
def test_forward_mode_of_the_triton_operator(derivative, moves, assert_close):
    for grid, C, k in (((2, 3), 3, 3), ((1, 2), 2, 5)):
        x, w, dx, dw = draw(grid, C, k, torch.float32)
        dx, dw = None if moves == "kernels" else dx, None if moves == "tokens" else dw
        with torch.no_grad():
            actual = derivative(lambda x, w, grid=grid: triton_conv(x, w, grid), x, w, dx, dw)
        assert_close(actual, two_convolutions(x, w, dx, dw, grid), 2e-6)


@needs_triton
def test_the_value_beside_the_tangent(assert_close):
    x, w, dx, dw = draw(dtype=torch.float32)
    out, tangent = torch.func.jvp(triton_conv, (x, w), (dx, dw))
    assert_close(out, naive_depthwise_conv(x.double(), w.double(), GRID), 2e-6)
    assert tangent.dtype == torch.float32 and tangent.shape == out.shape


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_both_parts_of_the_tangent_are_added_before_they_are_rounded(dtype):
    """1 · 1 − (1 + ε) · 1 with kernels that only read the token itself: −ε, which rounded parts would lose."""
    epsilon = 2.0**-13
    x, w = torch.ones(1, 1, 1, dtype=dtype, device=DEVICE), torch.zeros(1, 1, 9, device=DEVICE)
    dw = torch.zeros_like(w)
    w[..., 4], dw[..., 4] = 1, -(1 + epsilon)
    tangent = torch.func.jvp(lambda x, w: triton_conv(x, w, (1, 1)), (x, w), (torch.ones_like(x), dw))[1]
    assert tangent.item() == -epsilon


@needs_triton
@pytest.mark.parametrize("other", [False, True])
def test_tangents_with_any_strides(other, assert_close):
    """As those of ATConv's kernels: taps outermost; that of a tangent may differ."""
    transposed = lambda a: a.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    x, w, dx, dw = draw(dtype=torch.float32)
    expected = two_convolutions(x, w, dx, dw)
    x, w, dx, dw = transposed(x), transposed(w), transposed(dx), dw if other else transposed(dw)
    assert_close(by_dual_numbers(triton_conv, x, w, dx, dw), expected, 2e-6)


@needs_triton
def test_tangents_on_tiles_of_several_sizes(assert_close):
    grid = (5, 9)
    assert depthwise_conv_triton.choose_tile(2, *grid, 3) != (8, 16)
    x, w, dx, dw = draw(grid, dtype=torch.float32)
    assert_close(
        by_dual_numbers(lambda x, w: triton_conv(x, w, grid), x, w, dx, dw), two_convolutions(x, w, dx, dw, grid), 2e-6
    )


def loss(conv):
    """A function of the tokens and kernels with derivatives of every order."""
    return lambda x, w: conv(x, w, GRID).pow(3).sum()


def nested(conv, x, w, dx, dw):
    inner = lambda x: torch.func.jvp(lambda w: loss(conv)(x, w), (w,), (dw,))[1]  # noqa: E731
    return torch.func.jvp(inner, (x,), (dx,))[1]


def forward_over_reverse(conv, x, w, dx, dw):
    return torch.func.jvp(torch.func.grad(loss(conv)), (x, w), (dx, dw))[1]


def reverse_over_forward(conv, x, w, dx, dw):
    return torch.func.grad(lambda x: torch.func.jvp(loss(conv), (x, w), (dx, dw))[1])(x)


def reverse_over_dual_numbers(conv, x, w, dx, dw):
    x = x.clone().requires_grad_()
    with forward_ad.dual_level():
        out = loss(conv)(forward_ad.make_dual(x, dx), forward_ad.make_dual(w, dw))
        return torch.autograd.grad(forward_ad.unpack_dual(out).tangent, x)[0]


def dual_numbers_over_reverse(conv, x, w, dx, dw):
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        out = loss(conv)(forward_ad.make_dual(leaf, dx), forward_ad.make_dual(w, dw))
        (gradient,) = torch.autograd.grad(out, leaf)
        return forward_ad.unpack_dual(gradient).tangent


def dual_gradient_of_the_output(conv, x, w, dx, dw):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    out = conv(x, w, GRID)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(dx), dx)
        gradients = torch.autograd.grad(out, (x, w), upstream)
        return torch.cat([forward_ad.unpack_dual(g).tangent.flatten() for g in gradients])


def of_each_sample(conv, x, w, dx, dw):
    one = lambda x, w: conv(x[None], w[None], GRID)[0]  # noqa: E731
    return torch.vmap(one)(x, w)


def of_many_tokens(conv, x, w, dx, dw):
    return torch.vmap(lambda x: conv(x, w, GRID), in_dims=2, out_dims=1)(torch.stack([x, dx], 2))


def gradients_of_each_sample(conv, x, w, dx, dw):
    return torch.vmap(lambda x, w: torch.func.grad(loss(conv))(x[None], w[None]))(x, w)


def jacobian(conv, x, w, dx, dw):
    return torch.func.jacfwd(lambda w: conv(x[:1], w, GRID))(w[:1])


def jacobian_by_rows(conv, x, w, dx, dw):
    x = x[:1].clone().requires_grad_()
    return torch.autograd.functional.jacobian(lambda x: conv(x, w[:1], GRID), x, vectorize=True)


MIXED = [
    nested,
    forward_over_reverse,
    reverse_over_forward,
    reverse_over_dual_numbers,
    dual_numbers_over_reverse,
    dual_gradient_of_the_output,
    of_each_sample,
    of_many_tokens,
    gradients_of_each_sample,
    jacobian,
    jacobian_by_rows,
]


@needs_triton
@pytest.mark.parametrize("transform", MIXED)
def test_transforms_of_the_triton_operator(transform, assert_close, recwarn):
    inputs = draw(C=2, dtype=torch.float32)
    expected = transform(naive_depthwise_conv, *(a.double() for a in inputs))
    assert expected.abs().max() > 0.1
    assert_close(transform(triton_conv, *inputs), expected, 1e-5)
    assert not [w for w in recwarn if "performance drop" in str(w.message)]


@needs_triton
def test_a_compiled_directional_derivative(assert_close):
    x, w, dx, dw = draw(C=2, dtype=torch.float32)
    compiled = torch.compile(lambda *inputs: by_func(triton_conv, *inputs), backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, w, dx, dw), two_convolutions(x, w, dx, dw), 2e-6)


@needs_triton
def test_a_derivative_without_a_rule_is_an_error():
    """Third order, reverse mode twice and forward mode once: nothing is dropped in silence."""
    x, w, dx, _ = draw(C=1, dtype=torch.float32)
    x.requires_grad_()
    out = triton_conv(x, w)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(dx), dx).requires_grad_()
        with pytest.raises(NotImplementedError, match="mixes reverse mode with dual numbers"):
            torch.autograd.grad(out, x, upstream, create_graph=True)


@pytest.mark.slow
@needs_triton
def test_the_tangent_keeps_pytorchs_rules():
    x, w, dx, dw = draw(C=2, dtype=torch.float32)
    operator = torch.ops.sit_atconv.depthwise_conv_tangent_v3.default
    torch.library.opcheck(operator, (x, dx, w, dw, *GRID, 1))
    torch.library.opcheck(operator, (x.requires_grad_(), dx, w, dw.requires_grad_(), *GRID, 2))
