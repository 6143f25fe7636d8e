"""The linear layer against PyTorch's own in float64: results, derivatives, transforms, and where oneDNN is used."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sit_atconv import ATConv, SiTTransformer2DModel
from sit_atconv.ops import linear_onednn
from sit_atconv.ops.linear import Linear, linear, linear_gelu
from sit_atconv.ops.linear_onednn import HAS_BFLOAT16_PRODUCT, HAS_ONEDNN_PRODUCT

SHAPES = [((1, 3), 2), ((5, 7), 3), ((2, 4, 6), 9), ((3, 1, 2, 5), 4), ((33, 17), 65)]  # of x, and the outputs
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN_PRODUCT, reason="needs oneDNN on x86")


class Operators(TorchDispatchMode):
    """Records what PyTorch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def any_size(monkeypatch):
    """Small products go to oneDNN, too."""
    monkeypatch.setattr(linear_onednn, "WORTHWHILE_PRODUCTS", 0)
    monkeypatch.setattr(linear_onednn, "TRACED_WEIGHTS", 0)


def inputs(shape: tuple[int, ...], features: int) -> list[torch.Tensor]:
    """x, weight and bias, each with a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, (features, shape[-1]), (features,))
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def derivatives(function, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, the gradients of a function of it, and the gradients of a function of those."""
    y = function(*arguments)
    first = torch.autograd.grad(y.sin().sum(), arguments, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), arguments)
    return [y, *first, *second]


@pytest.mark.parametrize("shape, features", SHAPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_float64(shape, features, has_bias, any_size, assert_close):
    arguments = inputs(shape, features)[: 3 if has_bias else 2]
    double = [a.detach().double().requires_grad_() for a in arguments]
    for actual, expected in zip(derivatives(linear, arguments), derivatives(F.linear, double), strict=True):
        assert actual.shape == expected.shape
        assert_close(actual, expected.float(), 1e-5)


@pytest.mark.parametrize("way", ["transposed", "sliced", "expanded", "overlapping", "broadcast gradient"])
def test_any_strides(way, any_size, assert_close):
    x, weight, bias = (a.detach() for a in inputs((6, 8), 8))
    if way == "transposed":
        x, weight = x.t().contiguous().t(), weight.t()
    elif way == "sliced":
        x, weight = x[::2, 1:5], weight[::2, ::2]
        bias = bias[::2]
    elif way == "expanded":
        x, bias = x[:1].expand(5, 8), bias[:1].expand(8)
    elif way == "overlapping":
        x, weight = torch.randn(20).unfold(0, 8, 1)[:6], torch.randn(20).unfold(0, 8, 1)[:8]
    expected = (x.double() @ weight.double().t() + bias.double()).float()
    assert_close(linear(x, weight, bias), expected, 1e-6)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, weight, bias), expected, 1e-6)
    weight = weight.clone().requires_grad_()
    linear(x, weight, bias).sum().backward()  # a gradient whose strides are 0
    assert_close(weight.grad, x.sum(0).expand(len(weight), -1), 1e-5)


def test_forward_mode_and_vmap(any_size, assert_close):
    """torch.func sees through it: directional derivatives, gradients of each sample, second derivatives."""
    arguments = [a.detach() for a in inputs((4, 6), 3)]
    x, weight, bias = arguments
    tangents = tuple(torch.randn_like(a) for a in arguments)

    def of_one_sample(function):
        loss = lambda weight, row: function(row, weight, bias).sin().sum()  # noqa: E731
        return torch.vmap(torch.func.grad(loss), (None, 0))(weight, x)

    def second(function):
        return torch.func.hessian(lambda x: function(x, weight, bias).sin().sum())(x)

    def directional(function):
        return torch.func.jvp(function, tuple(arguments), tangents)[1]

    def directional_in_x(function):
        return torch.func.jvp(lambda x: function(x, weight), (x,), tangents[:1])[1]

    def nested(function):
        inner = lambda x: torch.func.jvp(lambda w: function(x, w, bias), (weight,), tangents[1:2])[1]  # noqa: E731
        return torch.func.jvp(inner, (x,), tangents[:1])[1]

    def with_duals(function):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(weight, tangents[1])
            return torch.autograd.forward_ad.unpack_dual(function(x, dual, bias)).tangent

    for transform in (of_one_sample, second, directional, directional_in_x, nested, with_duals):
        assert_close(transform(linear), transform(F.linear), 1e-5)
    compiled = torch.compile(directional, backend="aot_eager", fullgraph=True)
    assert_close(compiled(linear), directional(F.linear), 1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, dynamic, any_size, assert_close):
    arguments = inputs((2, 5, 6), 4)
    torch.compiler.reset()  # compiled versions count over all tests of a process, and are limited
    compiled = torch.compile(linear, backend=backend, fullgraph=True, dynamic=dynamic)
    actual = compiled(*arguments)
    gradients = torch.autograd.grad(actual.sin().sum(), arguments)
    expected, *others = derivatives(F.linear, arguments)
    assert_close(actual, expected, 1e-5)
    for gradient, other in zip(gradients, others, strict=False):
        assert_close(gradient, other, 1e-5)
    with torch.no_grad():
        assert_close(compiled(*arguments), expected, 1e-5)


@needs_onednn
def test_compiled_programs_hold_the_operator(any_size):
    called = []

    def record(graph, example_inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(linear, backend=aot_autograd(fw_compiler=record), fullgraph=True)(*inputs((2, 5, 6), 4))
    assert "sit_atconv.onednn_linear_v1.default" in called


@pytest.mark.parametrize("compiled", [False, True])
def test_pytorchs_counter_counts_it(compiled, any_size):
    x, weight, bias = inputs((2, 5, 6), 4)
    function = torch.compile(linear, backend="aot_eager") if compiled else linear
    with FlopCounterMode(display=False) as counter:
        function(x, weight, bias).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 6 * 4


def test_a_range_of_sizes_is_one_program():
    """What a batch of 1 to 64 is compiled for reaches from too small for oneDNN to worthwhile."""
    torch.compiler.reset()
    layer, x = Linear(96, 384), torch.randn(64, 96)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert compiled(x).shape == (64, 384)


def test_exported_programs_hold_no_operator_of_ours(any_size):
    program = torch.export.export(Linear(6, 4), (torch.randn(2, 6),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.linear.default"}


def test_other_dtypes_and_autocast(any_size):
    layer, x = Linear(6, 4), torch.randn(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
    assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.double())


def outcome(function, *arguments):
    """What is returned, or the error."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


ODD = {
    "x too narrow": lambda: (torch.randn(2, 5), torch.randn(4, 6), torch.randn(4)),
    "no rows": lambda: (torch.randn(2, 0, 6), torch.randn(4, 6), torch.randn(4)),
    "one dimension": lambda: (torch.randn(6), torch.randn(4, 6), torch.randn(4)),
    "weight of one output": lambda: (torch.randn(2, 6), torch.randn(6), None),
    "bias of one": lambda: (torch.randn(2, 6), torch.randn(4, 6), torch.randn(1)),
    "bias of each row": lambda: (torch.randn(2, 6), torch.randn(4, 6), torch.randn(2, 4)),
    "bias too long": lambda: (torch.randn(2, 6), torch.randn(4, 6), torch.randn(5)),
    "bias elsewhere": lambda: (torch.randn(2, 6), torch.randn(4, 6), torch.randn(4, device="meta")),
    "other dtype": lambda: (torch.randn(2, 6), torch.randn(4, 6), torch.randn(4).double()),
    "sparse weight": lambda: (torch.randn(2, 6), torch.eye(4, 6).to_sparse_csr(), torch.randn(4)),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_is_odd_is_as_pytorch_has_it(name, any_size):
    """The same result, or the same error."""
    torch.manual_seed(0)
    arguments = ODD[name]()
    actual, expected = outcome(linear, *arguments), outcome(F.linear, *arguments)
    assert type(actual) is type(expected)
    if isinstance(expected, str):
        assert actual == expected
    elif expected.device.type == "cpu":
        torch.testing.assert_close(actual, expected)
    else:
        assert actual.device == expected.device


def test_switched_off_and_scripted(any_size):
    layer, x = Linear(6, 4), torch.randn(2, 6)
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), Operators() as operators:
        layer(x)
    assert "mkldnn::_linear_pointwise" not in operators.names
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_only_what_a_gradient_needs_is_kept(trained, any_size):
    """Frozen layers, as of a model with adapters, do not keep their input."""
    kept = []
    x, weight, bias = (a.detach() for a in inputs((3, 6), 4))
    (x if trained == "x" else weight).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        linear(x, weight, bias)
    assert kept == [weight.shape if trained == "x" else x.shape]


@needs_onednn
@pytest.mark.parametrize("preset", ["SiT-Nano/2", "SiT-ATConv-Nano/2"])
def test_every_large_product_of_a_model_is_onednns(preset):
    """Projections and MLP, forward and backward; without gradients GELU is part of its product."""
    model = SiTTransformer2DModel.from_preset(preset, num_layers=2, class_dropout_prob=0.0).eval()
    arguments = torch.randn(1, 4, 32, 32), torch.rand(1), torch.zeros(1, dtype=torch.long)
    per_block = 4  # qkv or values, out, and the MLP's two
    with Operators() as forward, torch.no_grad():
        model(*arguments)
    assert forward.names.count("mkldnn::_linear_pointwise") == 2 * per_block
    kernel_activations = 2 if preset == "SiT-ATConv-Nano/2" else 0
    assert forward.names.count("aten::gelu") == kernel_activations
    loss = model(*arguments).sample.square().sum()
    with Operators() as backward:
        loss.backward()
    assert backward.names.count("mkldnn::_linear_pointwise") == 2 * 2 * per_block  # of inputs and of weights


@needs_onednn
def test_small_products_stay_with_pytorch():
    atconv = ATConv(8)
    with Operators() as operators, torch.no_grad():
        atconv(torch.randn(1, 16, 8), (4, 4))
    assert "mkldnn::_linear_pointwise" not in operators.names


def test_gelu_in_one_pass(any_size, assert_close):
    layer, x = Linear(6, 9), torch.randn(2, 5, 6)
    expected = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh").float()
    with torch.no_grad(), Operators() as operators:
        assert_close(linear_gelu(layer, x), expected, 1e-6)
    assert ("aten::gelu" in operators.names) == (not HAS_ONEDNN_PRODUCT)
    assert_close(linear_gelu(layer, x), expected, 1e-6)
    (gradient,) = torch.autograd.grad(linear_gelu(layer, x).sum(), layer.weight)
    (other,) = torch.autograd.grad(
        F.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh").sum(), layer.weight
    )
    assert_close(gradient, other, 1e-5)


@pytest.mark.skipif(not HAS_BFLOAT16_PRODUCT, reason="needs oneDNN on x86 with AVX-512 or newer")
def test_bfloat16_without_gradients_is_rounded_once(any_size):
    torch.manual_seed(0)
    layer, x = Linear(64, 48).bfloat16(), torch.randn(2, 50, 64).bfloat16()
    double = copy.deepcopy(layer).double()
    with torch.no_grad(), Operators() as operators:
        fused, plain = linear_gelu(layer, x), layer(x)
    assert operators.names.count("mkldnn::_linear_pointwise") == 2 and "aten::gelu" not in operators.names
    for found, exact in ((fused, F.gelu(double(x.double()), approximate="tanh")), (plain, double(x.double()))):
        # Half of the distance of neighbouring numbers of 8 significant bits, and what summing in float32 adds.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    with Operators() as operators:
        linear_gelu(layer, x).sum().backward()
        torch.func.jvp(layer, (x,), (x,))
    assert "mkldnn::_linear_pointwise" not in operators.names
    assert layer.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["hook", "pre-hook", "replaced forward", "subclass"])
def test_gelu_waits_for_what_hangs_on_the_layer(how, any_size, assert_close):
    """Whoever hooks into the layer gets its sum, and can change it."""
    layer, x = Linear(6, 9), torch.randn(2, 6)
    expected = F.gelu(2 * layer(x), approximate="tanh")
    if how == "hook":
        layer.register_forward_hook(lambda layer, args, output: 2 * output)
    elif how == "pre-hook":
        layer.bias.data.zero_()
        expected = F.gelu(2 * layer(x), approximate="tanh")
        layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))
    elif how == "replaced forward":
        forward = layer.forward
        layer.forward = lambda x: 2 * forward(x)
    else:

        class Doubled(Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        layer.__class__ = Doubled
    with torch.no_grad():
        assert_close(linear_gelu(layer, x), expected, 1e-6)


def test_gelu_under_transforms(any_size, assert_close, recwarn):
    """Forward mode has derivatives where reverse mode is off: of any operand, and of one another; vmap has rows."""
    layer, x = Linear(6, 9), torch.randn(2, 6)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def ours(x, parameters):
        return torch.func.functional_call(GELU(layer), {f"layer.{n}": p for n, p in parameters.items()}, (x,))

    def pytorchs(x, parameters):
        return F.gelu(F.linear(x, parameters["weight"], parameters["bias"]), approximate="tanh")

    def in_x(function):
        return torch.func.jvp(lambda x: function(x, parameters), (x,), (torch.ones_like(x),))[1]

    def in_bias(function):
        move = lambda bias: function(x, parameters | {"bias": bias})  # noqa: E731
        return torch.func.jvp(move, (parameters["bias"],), (tangents["bias"],))[1]

    def twice(function):
        inner = lambda x: torch.func.jvp(lambda w: function(x, parameters | {"weight": w}), (weight,), (step,))[1]  # noqa: E731
        weight, step = parameters["weight"], tangents["weight"]
        return torch.func.jvp(inner, (x,), (torch.ones_like(x),))[1]

    def with_dual_bias(function):
        with torch.autograd.forward_ad.dual_level():
            bias = torch.autograd.forward_ad.make_dual(parameters["bias"], tangents["bias"])
            return torch.autograd.forward_ad.unpack_dual(function(x, parameters | {"bias": bias})).tangent

    def by_row(function):
        return torch.vmap(lambda row: function(row, parameters))(x)

    with torch.no_grad():
        for transform in (in_x, in_bias, twice, with_dual_bias, by_row):
            expected = transform(pytorchs)
            assert expected.abs().max() > 0
            assert_close(transform(ours), expected, 1e-5)
    assert not [w for w in recwarn if "performance drop" in str(w.message)]


class GELU(torch.nn.Module):
    """`linear_gelu` as a module."""

    def __init__(self, layer: Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_gelu(self.layer, x)


def test_gelu_waits_for_hooks_on_all_modules(any_size):
    layer, seen = Linear(6, 9), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    with torch.no_grad():
        linear_gelu(layer, torch.randn(2, 6))
    handle.remove()
    assert seen == [layer]


@needs_onednn
def test_a_second_copy_of_the_code_leaves_pytorchs_registries_alone():
    """A saved pipeline folder brings a copy of this code into the process."""
    operator, formulas = torch.ops.sit_atconv.onednn_linear_v1.default, dict(flop_registry)
    spec = importlib.util.find_spec("sit_atconv.ops.linear_onednn")
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    assert second.OneDNNLinear is not linear_onednn.OneDNNLinear
    assert torch.ops.sit_atconv.onednn_linear_v1.default is operator
    assert flop_registry == formulas
