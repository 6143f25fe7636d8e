"""Linear layers on x86 CPUs computed by oneDNN's own operator, which PyTorch ships but does not use for them.

PyTorch hands float32 matrix products to Intel's MKL, whose fast kernels are not all enabled on AMD processors
(https://github.com/pytorch/builder/issues/504). Measured with PyTorch 2.14: on an AMD EPYC core oneDNN takes half of
MKL's time for these layers (docs/performance.md); on an Intel core a model is 1.10 times as fast, mostly because GELU
is fused into the layer before it. PyTorch hands bfloat16 products to oneDNN itself, but without the GELU: where no
derivatives are needed, they are called here as well.

Delete this file once `F.linear` in float32 is as fast as `torch.ops.mkldnn._linear_pointwise` on AMD, whether through
oneDNN or a faster BLAS, unless the fused GELU alone is worth keeping it. Only linear.py, the benchmarks and the tests
import it.

Shapes: x (…, in), weight (out, in), bias (out,) -> (…, out).
"""

import platform
from math import prod

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .eager import PLAIN_CLASSES

HAS_ONEDNN_PRODUCT = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private: torch.compile lowers linear layers to it
)
# Otherwise the operator refuses bfloat16.
HAS_BFLOAT16_PRODUCT = HAS_ONEDNN_PRODUCT and torch.ops.mkldnn._is_mkldnn_bf16_supported()
WORTHWHILE_PRODUCTS = 2**21  # multiplications of a layer; with fewer, calling oneDNN costs more than it saves
TRACED_WEIGHTS = 2**13  # the same under torch.compile: elements of the weight, since batch sizes may be symbolic there


def onednn_takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN should compute x·Wᵀ + b of tensors that are neither dual numbers nor transformed by torch.func."""
    return (
        not torch._C._are_functorch_transforms_active()
        and onednn_suits(x, weight, bias)
        and not any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in (x, weight, bias))
    )


def onednn_takes_duals(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN should compute x·Wᵀ + b and its forward-mode derivative: one level of it, and no gradients.

    Other mixtures of derivatives and vmap are left to PyTorch.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        transforms = torch._C._functorch.get_interpreter_stack()
        if len(transforms) != 1 or transforms[0].key() != torch._C._functorch.TransformType.Jvp:
            return False
    elif forward_ad._current_level < 0:
        return False
    return x.dtype == torch.float32 and onednn_suits(x, weight, bias)


def onednn_suits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN can compute x·Wᵀ + b: on a CPU, plain tensors that fit, and large enough to pay off.

    They are float32, or bfloat16 if no gradient is needed. This runs before every layer, with cold caches, where each
    microsecond of Python becomes several.
    """
    if (
        not HAS_ONEDNN_PRODUCT
        or not torch.backends.mkldnn.enabled
        or torch.jit.is_tracing()
        or torch.compiler._is_exporting_flag  # in torch 2.11, is_exporting() is also true under torch.compile
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    operands = (x, weight) if bias is None else (x, weight, bias)
    for t in operands:
        if type(t) not in PLAIN_CLASSES or not t.is_cpu or t.dtype != x.dtype:
            return False
    if x.dtype != torch.float32:
        is_eager_forward = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if x.dtype != torch.bfloat16 or not HAS_BFLOAT16_PRODUCT or not is_eager_forward:
            return False
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1] or not (bias is None or bias.shape == weight.shape[:1]):
        return False
    if torch.compiler.is_compiling():  # the sizes of x may be symbolic, those of weights are not
        return weight.numel() >= TRACED_WEIGHTS
    if x.numel() * weight.shape[0] < WORTHWHILE_PRODUCTS:
        return False
    if any(t.layout != torch.strided for t in operands):
        return False
    # oneDNN refuses weights whose strides overlap, and reads a bias as if it were contiguous.
    return is_dense(weight) and (bias is None or bias.is_contiguous())


def is_dense(weight: torch.Tensor) -> bool:
    """Whether a matrix is stored row by row or column by column, without gaps."""
    return weight.is_contiguous() or weight.t().is_contiguous()


def onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x·Wᵀ + b, for operands that `onednn_takes`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return OneDNNLinear.apply(x, weight, bias)
    return call_onednn(x, weight, bias)


def onednn_linear_duals(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x·Wᵀ + b and its tangent, for operands that `onednn_takes_duals`."""
    return torch.ops.sit_atconv.onednn_linear_duals_v1(x, weight, bias)


def call_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x·Wᵀ + b by oneDNN's own operator, which has no derivative."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def onednn_linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """gelu_tanh(x·Wᵀ + b) in one pass over the output, for operands that `onednn_takes`. Has no derivative."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")


class OneDNNLinear(torch.autograd.Function):
    """x·Wᵀ + b with reverse-mode derivatives of any order."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.sit_atconv.onednn_linear_v1(x, weight, bias)
        return call_onednn(x, weight, bias)  # a custom operator costs 10 µs more

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])  # (M, out)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None,  # rowsᵀ·x
            rows.sum(0) if needs_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return onednn_linear(x, weight, None) if onednn_takes(x, weight, None) else F.linear(x, weight)


def register_onednn_linear() -> None:
    """Define `torch.ops.sit_atconv.onednn_linear_v1`, which torch.compile keeps whole, unlike oneDNN's own operator."""

    @torch.library.custom_op("sit_atconv::onednn_linear_v1", mutates_args=())
    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        weight = weight if is_dense(weight) else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        return call_onednn(x, weight, bias)

    @product.register_fake
    def _(x, weight, bias):
        return x.new_empty(*x.shape[:-1], weight.shape[0])


def register_onednn_linear_duals() -> None:
    """Define `torch.ops.sit_atconv.onednn_linear_duals_v1`, whose forward-mode derivative oneDNN computes, too.

    Custom operators of `torch.library.custom_op` drop tangents in silence, so this one has its rule where PyTorch's own
    operators have theirs. There dual numbers are visible, whether torch.func made them or torch.autograd.forward_ad.
    """

    def rule(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if any(t is not None and forward_ad.unpack_dual(t, level=0).tangent is not None for t in (weight, bias)):
            return F.linear(x, weight, bias)
        primal, tangent = forward_ad.unpack_dual(x, level=0)
        with torch._C._AutoDispatchBelowAutograd():
            y = call_onednn(primal, weight, bias)
            if tangent is None:
                return y
            d_y = call_onednn(tangent, weight, None)
        return forward_ad.make_dual(y, d_y, level=0)

    library = torch.library.Library("sit_atconv", "FRAGMENT")
    library.define("onednn_linear_duals_v1(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    library.impl("onednn_linear_duals_v1", call_onednn, "CPU")
    library.impl("onednn_linear_duals_v1", rule, "Autograd")
    vars(torch.ops.sit_atconv)["onednn_linear_library"] = library  # kept as long as the process


def register_onednn_flops() -> None:
    """Teach PyTorch's FlopCounterMode to count those of oneDNN's products that it does not know yet."""
    products = {torch.ops.mkldnn._linear_pointwise, torch.ops.sit_atconv.onednn_linear_v1}
    if unknown := products - flop_registry.keys():

        @register_flop_formula(list(unknown))
        def _(x_shape, weight_shape, *options, **others) -> int:
            return 2 * prod(x_shape) * weight_shape[0]


# PyTorch's registries are shared by the whole process, which may hold several copies of this code: each saved pipeline
# folder carries one. The first copy registers the operator for all. So what `…_v1` takes and returns must never
# change; a different operator needs the next version in its name.
if HAS_ONEDNN_PRODUCT:
    if not hasattr(torch.ops.sit_atconv, "onednn_linear_v1"):
        register_onednn_linear()
    if not hasattr(torch.ops.sit_atconv, "onednn_linear_duals_v1"):
        register_onednn_linear_duals()
    register_onednn_flops()
