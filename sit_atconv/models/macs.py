"""Multiply-accumulates (MACs) of one forward pass, counted from the operations that run; costs.py has the formula.

Only matrix products and convolutions are counted, as in the "Gflops" of DiT and SiT, which are giga-MACs. Sums,
pooling, norms, activations, softmax and the elementwise products of adaLN, gating and lateral inhibition are not. Taps
that fall on zero padding are counted.

Shapes: B batch, C latent channels, p patch size, (H, W) token grid, N = H·W tokens, D model width, k kernel size.
"""

from collections import ChainMap

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ..utils.checks import check_count
from .transformer_sit import SiTTransformer2DModel


def count_macs(model: SiTTransformer2DModel, height: int, width: int, batch_size: int = 1) -> int:
    """Count the MACs of one forward pass from the operations that PyTorch dispatches.

    The pass runs on PyTorch's meta device, which computes shapes only; the model is not changed.

    Args:
        model: the model, on any device and in any dtype.
        height, width: size of the latents, in latent pixels.
        batch_size: B; the count is for the whole batch.

    Raises:
        ValueError: for a batch size below 1, or a size that the patch size does not divide.
    """
    check_count("batch_size", batch_size)
    with torch.device("meta"):
        x = torch.empty(batch_size, model.config.in_channels, height, width, dtype=model.dtype)  # (B, C, H·p, W·p)
        t = torch.empty(batch_size)
        labels = torch.empty(batch_size, dtype=torch.long)
    flops = sum(flops for flops, _ in count_operations(model, x, t, labels))
    assert flops % 2 == 0, "a multiply-accumulate is two operations"
    return flops // 2


def _convolution_backward(grad, x, weight, *options, out_val) -> int:
    """Each of the two gradients costs as much as the forward pass. PyTorch's own formula ignores groups."""
    return 2 * grad.numel() * weight[0].numel() * sum(options[-1][:2])  # the last option says which are needed


FORMULAS = ChainMap({torch.ops.aten.convolution_backward: _convolution_backward}, flop_registry)


class _FlashAttention(torch.autograd.Function):
    """The shapes of attention, and its operations: two products in the forward pass, five in the backward pass, which
    computes that of queries and keys again (Algorithm 4 of arXiv 2205.14135)."""

    @staticmethod
    def forward(ctx, q, k, v, operations):  # (B, heads, N, head_dim)
        ctx.save_for_backward(q, k, v)
        ctx.operations = operations
        out = torch.empty_like(q)
        operations.append((4 * q.numel() * k.shape[-2], sum(x.nbytes for x in (q, k, v, out))))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        read = (q, k, v, grad, grad)  # the second stands for the output, which is as large as its gradient
        ctx.operations.append((10 * q.numel() * k.shape[-2], sum(x.nbytes for x in (*read, q, k, v))))
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class _CountAttention(TorchFunctionMode):
    """Counts attention as one operation that reads q, k, v and writes its result, however the device computes it."""

    def __init__(self, operations: list[tuple[int, int]]):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value")
        operands = dict(zip(names, args, strict=False)) | (kwargs or {})
        return _FlashAttention.apply(*(operands[name] for name in names), self.operations)


class _Operations(TorchDispatchMode):
    """Counts the floating-point operations of each matrix product and convolution, and the bytes read and written."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = FORMULAS.get(func._overloadpacket)
        if count is not None:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
            self.operations.append((count(*args, **kwargs, out_val=out), sum(tensor.nbytes for tensor in tensors)))
        return out


def count_operations(
    module: nn.Module, *inputs, backward: bool = False, dtype: torch.dtype | None = None
) -> list[tuple[int, int]]:
    """Count (floating-point operations, bytes moved) of each matrix product, convolution and attention of a module.

    `module(*inputs)` runs on PyTorch's meta device, which computes shapes only; nothing is changed. The bytes are those
    of operands and results: everything else (norms, activations, sums) is assumed to be fused into these operations.

    Args:
        module: a module that returns a tensor, or an output with `.sample`.
        inputs: the arguments of its forward pass, on any device.
        backward: also count the backward pass, for the gradients of all weights but not of the inputs.
        dtype: dtype of weights and inputs, as under autocast. If None, their own.
    """

    def shape(x: torch.Tensor) -> torch.Tensor:
        return x.to("meta", dtype if x.is_floating_point() else None)

    weights = {name: shape(weight).requires_grad_(backward) for name, weight in module.state_dict().items()}
    inputs = tree_map_only(torch.Tensor, shape, inputs)
    counter = _Operations()
    eager = torch.compiler.set_stance("force_eager")  # compiled blocks hide what they do
    with torch.set_grad_enabled(backward), eager, counter, _CountAttention(counter.operations):
        output = functional_call(module, weights, inputs)
        if backward:
            getattr(output, "sample", output).sum().backward()
    return counter.operations
