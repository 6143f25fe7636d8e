"""The linear layer of every block, whose float32 products on x86 CPUs are oneDNN's.

PyTorch hands them to Intel's MKL, which on AMD's processors reaches less than half of oneDNN's speed
(docs/performance.md has the figures). bfloat16 goes to oneDNN in any case.
"""

import platform
from math import prod

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import flop_registry, register_flop_formula

HAS_ONEDNN_PRODUCT = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # PyTorch's own, of which torch.compile makes linear layers
)
PLAIN = (torch.Tensor, nn.Parameter)  # and not a class of quantized, sharded or pretended tensors
WORTHWHILE_PRODUCTS = 2**21  # multiplications of a layer; with fewer, starting oneDNN takes longer than it saves
TRACED_WEIGHTS = 2**13  # the same under torch.compile, of a weight alone


def is_dense(weight: torch.Tensor) -> bool:
    """Whether a matrix lies row by row or column by column."""
    return weight.is_contiguous() or weight.t().is_contiguous()


def register_product() -> None:
    """Make `torch.ops.sit_atconv.onednn_linear`: torch.compile keeps it whole, and not the one that it calls."""

    @torch.library.custom_op("sit_atconv::onednn_linear", mutates_args=())
    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        weight = weight if is_dense(weight) else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @product.register_fake
    def _(x, weight, bias):
        return x.new_empty(*x.shape[:-1], weight.shape[0])


# A pipeline folder brings its own copy of this code, and the first one to be imported registers the operator for all:
# what it takes and returns must stay as it is. Another would need another name.
if HAS_ONEDNN_PRODUCT and not hasattr(torch.ops.sit_atconv, "onednn_linear"):
    register_product()


def register_flops() -> None:
    """Let PyTorch's FlopCounterMode count the products that it does not know."""
    unknown = {torch.ops.mkldnn._linear_pointwise, torch.ops.sit_atconv.onednn_linear} - flop_registry.keys()

    @register_flop_formula(list(unknown))
    def _(x_shape, weight_shape, *options, **others) -> int:
        return 2 * prod(x_shape) * weight_shape[0]


if HAS_ONEDNN_PRODUCT:
    register_flops()


class OneDNNLinear(torch.autograd.Function):
    """x·Wᵀ + b with x (…, in), W (out, in), b (out,), float32, on a CPU. Derivatives of any order, backwards."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.sit_atconv.onednn_linear(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # our own operator takes 10 µs more

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
            linear(grad, weight.t()) if needs_x else None,
            linear(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None,  # rowsᵀ·x
            rows.sum(0) if needs_bias else None,
        )


def onednn_takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether x·Wᵀ + b is one for oneDNN: float32 on a CPU, plain tensors that fit, and large enough to pay.

    Asked before every layer, with cold caches, where a microsecond of Python becomes several.
    """
    if (
        not HAS_ONEDNN_PRODUCT
        or not torch.backends.mkldnn.enabled
        or torch.jit.is_tracing()
        or torch.compiler._is_exporting_flag  # is_exporting() of torch 2.11 is true in torch.compile, too
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()  # vmap, and derivatives forwards, have no rule there
    ):
        return False
    operands = (x, weight) if bias is None else (x, weight, bias)
    for t in operands:
        if type(t) not in PLAIN or not t.is_cpu or t.dtype != torch.float32:
            return False
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1] or not (bias is None or bias.shape == weight.shape[:1]):
        return False
    if torch.compiler.is_compiling():  # traced sizes may stand for many, those of weights do not
        return weight.numel() >= TRACED_WEIGHTS
    if x.numel() * weight.shape[0] < WORTHWHILE_PRODUCTS:
        return False
    for t in operands:
        if t.layout != torch.strided or forward_ad.unpack_dual(t).tangent is not None:
            return False
    # oneDNN takes no weight whose strides overlap, and reads a bias as if it had none.
    return is_dense(weight) and (bias is None or bias.is_contiguous())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `F.linear`: x (…, in), weight (out, in), bias (out,) -> (…, out)."""
    if not onednn_takes(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return OneDNNLinear.apply(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def is_untouched(layer: nn.Module) -> bool:
    """Whether a layer is one of ours, has plain weights, and nothing on it that its call would run, such as a hook."""
    return (
        type(layer) is Linear
        and type(layer.weight) in PLAIN
        and "forward" not in layer.__dict__
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
        and not (torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)
    )


def gelu_of_linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`F.gelu(layer(x), approximate="tanh")`, in one pass over the output where there are no derivatives.

    That goes past the layer's own call, and so is done only where the call would do nothing else.
    """
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if eager and is_untouched(layer) and onednn_takes(x, layer.weight, layer.bias):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
    return F.gelu(layer(x), approximate="tanh")
