"""Multiply-accumulates (MACs) of one forward pass: counted from the operations that run, and by formula.

Only multiplications of matrices and convolutions count, as in the "Gflops" of DiT and SiT (which are giga-MACs): sums,
pooling, norms, activations, softmax and the elementwise products of adaLN, gating and lateral inhibition do not. Taps
that fall on zero padding do.

Shapes: B batch, C latent channels, p patch size, (H, W) token grid, N = H·W tokens, D model width, k kernel size.
"""

from collections import ChainMap
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ..utils.checks import check_count
from .embeddings import FREQUENCIES
from .presets import mixer_per_block
from .transformer_sit import SiTTransformer2DModel


def count_macs(model: SiTTransformer2DModel, height: int, width: int, batch_size: int = 1) -> int:
    """Count the MACs of one forward pass from the operations that PyTorch dispatches.

    Runs on PyTorch's meta device, wherever the weights are: shapes only, at no cost and with nothing changed.

    Args:
        model: of any device and dtype.
        height, width: of the latents, in latent pixels.
        batch_size: B; the count is for the whole batch.

    Raises:
        ValueError: for a batch below 1, or a size that the patch does not divide.
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
    """Either gradient costs what the forward pass does. PyTorch's own formula overlooks that there are groups."""
    return 2 * grad.numel() * weight[0].numel() * sum(options[-1][:2])  # the last option tells which are wanted


FORMULAS = ChainMap({torch.ops.aten.convolution_backward: _convolution_backward}, flop_registry)


class _FlashAttention(torch.autograd.Function):
    """The shapes of attention, and its operations: two products forward, and backward five, of which one is that of the
    queries and keys once more (Algorithm 4 of arXiv 2205.14135)."""

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
        read = (q, k, v, grad, grad)  # and the output, which is as large as its gradient
        ctx.operations.append((10 * q.numel() * k.shape[-2], sum(x.nbytes for x in (*read, q, k, v))))
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class _CountAttention(TorchFunctionMode):
    """Counts attention as one operation that reads q, k, v and writes its result, whatever the device makes of it."""

    def __init__(self, operations: list[tuple[int, int]]):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _FlashAttention.apply(*args[:3], self.operations)


class _Operations(TorchDispatchMode):
    """Counts each matrix product and convolution: floating-point operations, and bytes read and written once."""

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
    """(floating-point operations, bytes moved) of every matrix product, convolution and attention of `module(*inputs)`.

    Runs on PyTorch's meta device, wherever module and inputs are: shapes only, at no cost and with nothing changed.
    Bytes are those of operands and result; everything else (norms, activations, sums) is taken to be fused into them.

    Args:
        module: returns a tensor, or an output with `.sample`.
        inputs: tensors and whatever else it takes.
        backward: count the gradients of all weights, too; the inputs need none.
        dtype: of weights and inputs, as autocast sees them; by default their own.
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


def closed_form_macs(config: Mapping, height: int, width: int) -> int:
    """The MACs of one forward pass of one image, by hand.

    Args:
        config: every argument of `SiTTransformer2DModel`, as in `model.config`.
        height, width: of the latents, in latent pixels.

    Raises:
        ValueError: for a size that the patch does not divide.
    """
    p = config["patch_size"]
    if height % p or width % p:
        raise ValueError(f"height={height} and width={width} must be divisible by patch_size={p}")
    N = (height // p) * (width // p)
    D = config["num_attention_heads"] * config["attention_head_dim"]
    k = config["kernel_size"]
    C = config["in_channels"]

    mixers = {
        # q, k, v and output projections; then q·kᵀ and the weighted sum of v
        "attention": 4 * N * D**2 + 2 * N**2 * D,
        # value and output projections; kernel_proj on the k² pooled tokens; kernel_gen; the convolution
        "atconv": 2 * N * D**2 + k**2 * D**2 + D * k**4 + N * D * k**2,
    }
    modulation = 6 * D**2
    mlp = 2 * N * D * int(D * config["mlp_ratio"])
    blocks = sum(modulation + mixers[name] + mlp for name in mixer_per_block(config["mixer"], config["num_layers"]))
    patch_embed = N * D * C * p**2
    time_embed = FREQUENCIES * D + D**2
    output = 2 * D**2 + N * D * p**2 * (config["out_channels"] or C)
    return patch_embed + time_embed + blocks + output
