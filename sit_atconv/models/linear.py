"""The linear layer of every block, whose float32 products on x86 CPUs are oneDNN's.

PyTorch hands them to Intel's MKL, which on AMD's processors reaches less than half of oneDNN's speed
(docs/performance.md has the figures). bfloat16 goes to oneDNN in any case.
"""

import platform

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

HAS_ONEDNN_PRODUCT = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # PyTorch's own, of which torch.compile makes linear layers
)
PLAIN = (torch.Tensor, nn.Parameter)  # and not a class of quantized, sharded or pretended tensors
WORTHWHILE_PRODUCTS = 2**21  # multiplications of a layer; with fewer, starting oneDNN takes longer than it saves


def register_product() -> None:
    """Make `torch.ops.sit_atconv.onednn_linear`: torch.compile keeps it whole, and not the one that it calls."""

    @torch.library.custom_op("sit_atconv::onednn_linear", mutates_args=())
    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @product.register_fake
    def _(x, weight, bias):
        return x.new_empty(*x.shape[:-1], weight.shape[0])


# A pipeline folder brings its own copy of this code, and the first one to be imported registers the operator for all:
# what it takes and returns must stay as it is. Another would need another name.
if HAS_ONEDNN_PRODUCT and not hasattr(torch.ops.sit_atconv, "onednn_linear"):
    register_product()


class TracedOneDNNLinear(torch.autograd.Function):
    """x·Wᵀ + b: as much of `OneDNNLinear` as torch.compile can trace. Derivatives of any order."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.sit_atconv.onednn_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

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


class OneDNNLinear(TracedOneDNNLinear):
    """x·Wᵀ + b with x (…, in), W (out, in), b (out,), float32, on a CPU. Also has forward-mode derivatives and vmap."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # 10 µs less than our own operator

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, bias_tangent):
        x, weight = ctx.saved_tensors
        tangent = torch.zeros(()) if bias_tangent is None else bias_tangent
        if x_tangent is not None:
            tangent = tangent + linear(x_tangent, weight)
        if weight_tangent is not None:
            tangent = tangent + linear(x, weight_tangent)
        return tangent

    @staticmethod
    def vmap(info, in_dims, x, weight, bias):
        return torch.vmap(F.linear, in_dims)(x, weight, bias), 0


def onednn_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the product x·Wᵀ is one for oneDNN."""
    return (
        HAS_ONEDNN_PRODUCT
        and type(x) in PLAIN
        and type(weight) in PLAIN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and x.numel() * weight.shape[0] >= WORTHWHILE_PRODUCTS
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `F.linear`: x (…, in), weight (out, in), bias (out,) -> (…, out)."""
    if onednn_takes(x, weight):
        function = TracedOneDNNLinear if torch.compiler.is_compiling() else OneDNNLinear
        return function.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def gelu_of_linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`F.gelu(layer(x), approximate="tanh")`, without derivatives in one pass over the output.

    That passes over the layer's own call, and so is done only where nothing else hangs on it, such as an adapter or a
    hook that brings the weights.
    """
    if (
        type(layer) is Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and onednn_takes(x, layer.weight)
        and forward_ad.unpack_dual(x).tangent is None
        and forward_ad.unpack_dual(layer.weight).tangent is None
    ):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
    return F.gelu(layer(x), approximate="tanh")
