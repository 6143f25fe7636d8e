"""The PyTorch operators of the Triton kernels: what compilers see of them, and every derivative.

Shapes: tokens (B, N, C) on a grid (height, width), kernels (B, C, k²) -> (B, N, C); see depthwise_conv_triton.py.

The convolution is bilinear, so its derivatives are convolutions and gradients of convolutions again:

    forward mode    d_out = conv(d_tokens, kernels) + conv(tokens, d_kernels)
    reverse mode    (d_tokens, d_kernels) = backward(grad, tokens, kernels)

`torch.library.register_autograd` only knows reverse mode, and operators so registered drop the tangents of forward mode
in silence. Therefore the rules are registered here at the dispatch key that PyTorch's own operators use for theirs.
"""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad

from .depthwise_conv_triton import triton_backward, triton_forward, triton_tangent

SCHEMAS = (
    "depthwise_conv_v3(Tensor tokens, Tensor kernels, SymInt height, SymInt width, int dilation) -> Tensor",
    "depthwise_conv_tangent_v3(Tensor tokens, Tensor tokens_tangent, Tensor kernels, Tensor kernels_tangent, "
    "SymInt height, SymInt width, int dilation) -> Tensor",
    "depthwise_conv_backward_v3(Tensor grad, Tensor tokens, Tensor kernels, SymInt height, SymInt width, int dilation) "
    "-> (Tensor, Tensor)",
)


def split_dual(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (primal, tangent or None) of a tensor that may be a dual number.

    At level 0, which is the only one that PyTorch supports; the current level is not known in compiled programs.
    """
    primal, tangent = forward_ad.unpack_dual(x, level=0)
    return primal, tangent


def needs_gradient(*tensors: torch.Tensor) -> bool:
    """Whether reverse mode records an operation on these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def register_depthwise_conv(differentiable: Callable[..., torch.Tensor]) -> None:
    """Define `torch.ops.sit_atconv.depthwise_conv_v3` and the operators of its derivatives.

    torch.compile and torch.export do not decompose these operators.

    Args:
        differentiable: the same convolution of PyTorch's own operations, `(tokens, kernels, grid, dilation) -> tokens`.
            It is used where derivatives are mixed in a way that the kernels have no rule for: reverse mode inside the
            transforms of torch.func, or of dual numbers.
    """
    library = torch.library.Library("sit_atconv", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operators = torch.ops.sit_atconv
    vars(operators)["depthwise_conv_v3_library"] = library  # kept as long as the process; the operators end with it
    forward, tangent = operators.depthwise_conv_v3, operators.depthwise_conv_tangent_v3
    backward = operators.depthwise_conv_backward_v3

    for operator, compute, fake, rule in (
        (forward, triton_forward, fake_tokens, forward_rule(forward, tangent, backward, differentiable)),
        (tangent, triton_tangent, fake_tokens, tangent_rule(forward, tangent)),
        (backward, triton_backward, fake_gradients, backward_rule(forward, backward)),
    ):
        name = str(operator)  # sit_atconv.depthwise_conv_v3
        library.impl(operator.default, compute, "CompositeExplicitAutograd")
        library.impl(operator.default, rule, "Autograd")
        torch.library.register_fake(name.replace(".", "::"), fake, lib=library)
        torch.library.register_vmap(name.replace(".", "::"), vmap_rule(operator), lib=library)


def fake_tokens(tokens: torch.Tensor, *others) -> torch.Tensor:
    """The output of the convolution and of its tangent, without values."""
    return tokens.new_empty(tokens.shape)


def fake_gradients(grad, tokens, kernels, height, width, dilation) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of the backward operator, without values."""
    B, C, K = kernels.shape
    return tokens.new_empty(tokens.shape), kernels.new_empty(B, K, C).transpose(1, 2)


def forward_rule(forward, tangent, backward, differentiable) -> Callable:
    """The derivatives of the convolution."""

    class Convolution(torch.autograd.Function):
        """Reverse mode, for tensors that are no dual numbers."""

        @staticmethod
        def forward(ctx, tokens, kernels, height, width, dilation):
            ctx.save_for_backward(tokens, kernels)
            ctx.size = height, width, dilation
            with torch._C._AutoDispatchBelowAutograd():
                return forward(tokens, kernels, height, width, dilation)

        @staticmethod
        def backward(ctx, grad):
            return *backward(grad, *ctx.saved_tensors, *ctx.size), None, None, None

    def rule(tokens, kernels, height, width, dilation):
        (x, dx), (w, dw) = split_dual(tokens), split_dual(kernels)
        is_dual = dx is not None or dw is not None
        if needs_gradient(tokens, kernels):
            # What is saved for a backward pass would lack the tangents, and torch.func refuses functions defined here.
            if is_dual or torch._C._are_functorch_transforms_active():
                return differentiable(tokens, kernels.to(tokens.dtype), (height, width), dilation)
            return Convolution.apply(tokens, kernels, height, width, dilation)
        if not is_dual:
            with torch._C._AutoDispatchBelowAutograd():
                return forward(tokens, kernels, height, width, dilation)
        if dx is None:
            d_out = forward(x, dw, height, width, dilation)
        elif dw is None:
            d_out = forward(dx, w, height, width, dilation)
        else:
            d_out = tangent(x, dx, w, dw, height, width, dilation)
        return forward_ad.make_dual(forward(x, w, height, width, dilation), d_out, level=0)

    return rule


def tangent_rule(forward, tangent) -> Callable:
    """The derivatives of the directional derivative, which is two convolutions if it is differentiated itself."""

    def rule(tokens, tokens_tangent, kernels, kernels_tangent, height, width, dilation):
        tensors = (tokens, tokens_tangent, kernels, kernels_tangent)
        if needs_gradient(*tensors) or any(split_dual(x)[1] is not None for x in tensors):
            from_tokens = forward(tokens_tangent, kernels, height, width, dilation)
            return from_tokens + forward(tokens, kernels_tangent, height, width, dilation)
        with torch._C._AutoDispatchBelowAutograd():
            return tangent(*tensors, height, width, dilation)

    return rule


def backward_rule(forward, backward) -> Callable:
    """The derivatives of the gradients."""

    class Gradients(torch.autograd.Function):
        """Reverse mode, for tensors that are no dual numbers."""

        @staticmethod
        def forward(ctx, grad, tokens, kernels, height, width, dilation):
            ctx.save_for_backward(grad, tokens, kernels)
            ctx.size = height, width, dilation
            with torch._C._AutoDispatchBelowAutograd():
                return backward(grad, tokens, kernels, height, width, dilation)

        @staticmethod
        def backward(ctx, grad_tokens, grad_kernels):
            # Again bilinear: every term is a convolution or the gradient of one.
            grad, tokens, kernels = ctx.saved_tensors
            from_grad = forward(grad_tokens, kernels, *ctx.size) + forward(tokens, grad_kernels, *ctx.size)
            from_tokens, from_kernels = backward(grad, grad_tokens, grad_kernels, *ctx.size)
            return from_grad, from_tokens, from_kernels, None, None, None

    def rule(grad, tokens, kernels, height, width, dilation):
        (g, dg), (x, dx), (w, dw) = split_dual(grad), split_dual(tokens), split_dual(kernels)
        is_dual = any(d is not None for d in (dg, dx, dw))
        if needs_gradient(grad, tokens, kernels):
            if is_dual or torch._C._are_functorch_transforms_active():
                raise NotImplementedError(
                    "the gradients of the Triton convolution have no derivative that mixes reverse mode with dual "
                    "numbers or torch.func; compute that derivative on a CPU"
                )
            return Gradients.apply(grad, tokens, kernels, height, width, dilation)
        if not is_dual:
            with torch._C._AutoDispatchBelowAutograd():
                return backward(grad, tokens, kernels, height, width, dilation)
        d_x, d_w = torch.zeros_like(x), torch.zeros_like(w)
        if dg is not None:
            d_x, d_w = backward(dg, x, w, height, width, dilation)
        if dx is not None or dw is not None:
            zero_or = lambda d, like: torch.zeros_like(like) if d is None else d  # noqa: E731
            more_x, more_w = backward(g, zero_or(dx, x), zero_or(dw, w), height, width, dilation)
            d_x, d_w = d_x + more_x, d_w + more_w
        outputs = backward(g, x, w, height, width, dilation)
        return tuple(forward_ad.make_dual(y, d, level=0) for y, d in zip(outputs, (d_x, d_w), strict=True))

    return rule


def vmap_rule(operator) -> Callable:
    """torch.vmap: the samples of all rows are samples of one call."""

    def rule(info, in_dims, *arguments):
        *tensors, height, width, dilation = arguments
        rows = info.batch_size
        tensors = [
            x.expand(rows, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims, strict=False)
        ]
        outputs = operator(*(x.flatten(0, 1) for x in tensors), height, width, dilation)
        if isinstance(outputs, torch.Tensor):
            return outputs.unflatten(0, (rows, -1)), 0
        return tuple(x.unflatten(0, (rows, -1)) for x in outputs), (0,) * len(outputs)

    return rule
