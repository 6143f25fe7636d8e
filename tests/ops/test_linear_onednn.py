"""Forward-mode derivatives of linear layers that oneDNN computes."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from sit_atconv.ops import linear_onednn
from sit_atconv.ops.linear import Linear, linear, linear_gelu

pytestmark = pytest.mark.skipif(not linear_onednn.HAS_ONEDNN_PRODUCT, reason="needs oneDNN on x86")


class Products(TorchDispatchMode):
    """Records which matrix products run."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "linear" in func.name() or "mm" in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(linear_onednn, "WORTHWHILE_PRODUCTS", 0)


def draw(bias: bool = True):
    generator = torch.Generator().manual_seed(0)
    x, dx = torch.randn(2, 3, 4, 6, generator=generator).unbind()
    weight, dweight = torch.randn(2, 5, 6, generator=generator).unbind()
    b, db = torch.randn(2, 5, generator=generator).unbind()
    return (x, weight, b if bias else None), (dx, dweight, db if bias else None)


def with_duals(function, arguments, tangents):
    with forward_ad.dual_level():
        duals = [a if d is None else forward_ad.make_dual(a, d) for a, d in zip(arguments, tangents, strict=True)]
        out = forward_ad.unpack_dual(function(*duals))
        return out.primal.clone(), out.tangent


def with_func(function, arguments, tangents):
    moving = [i for i, d in enumerate(tangents) if d is not None]

    def of_moving(*values):
        every = list(arguments)
        for i, value in zip(moving, values, strict=True):
            every[i] = value
        return function(*every)

    return torch.func.jvp(of_moving, tuple(arguments[i] for i in moving), tuple(tangents[i] for i in moving))


@torch.no_grad()
@pytest.mark.parametrize("derivative", [with_duals, with_func])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("moving", [(0,), (1,), (0, 1), (0, 2), (2,), (0, 1, 2)])
def test_whatever_moves(derivative, bias, moving, assert_close):
    arguments, tangents = draw(bias)
    tangents = tuple(d if i in moving else None for i, d in enumerate(tangents))
    if all(d is None for d in tangents):
        return
    double = [None if a is None else a.double() for a in arguments]
    expected = derivative(F.linear, double, [None if d is None else d.double() for d in tangents])
    for a, b in zip(derivative(linear, arguments, tangents), expected, strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("derivative", [with_duals, with_func])
def test_onednn_computes_both_parts(derivative):
    arguments, (dx, *_) = draw()
    with torch.no_grad(), Products() as products:
        derivative(linear, arguments, (dx, None, None))
    assert set(products.names) == {"mkldnn::_linear_pointwise"} and len(products.names) == 2


def test_not_where_a_gradient_is_recorded(assert_close):
    """The tangent can be differentiated by the weight: dx, summed."""
    (x, weight, bias), (dx, *_) = draw()
    weight.requires_grad_()
    tangent = with_duals(linear, (x, weight, bias), (dx, None, None))[1]
    (gradient,) = torch.autograd.grad(tangent.sum(), weight)
    assert_close(gradient, dx.flatten(0, 1).sum(0).expand(5, 6), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("way", ["zero", "expanded", "transposed"])
def test_tangents_stored_in_other_ways(way, assert_close):
    """PyTorch stores a tangent that is zero without numbers."""
    arguments, (dx, *_) = draw()
    tangent = {
        "zero": torch._efficientzerotensor(dx.shape),
        "expanded": dx[:, :1].expand_as(dx),
        "transposed": dx.transpose(0, 1).contiguous().transpose(0, 1),
    }[way]
    expected = F.linear(tangent.clone() if way != "zero" else torch.zeros_like(dx), arguments[1])
    actual = with_duals(lambda x, w, b: linear(x, w, b) + 0, arguments, (tangent, None, None))[1]
    assert_close(torch.zeros_like(expected) if actual is None else actual + 0, expected, 1e-6)


@torch.no_grad()
def test_linear_gelu(assert_close):
    layer = Linear(6, 5)
    (x, *_), (dx, *_) = draw()
    for derivative in (with_duals, with_func):
        actual = derivative(lambda x: linear_gelu(layer, x), (x,), (dx,))[1]
        expected = derivative(lambda x: F.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh"), (x,), (dx,))
        assert_close(actual, expected[1], 1e-5)
