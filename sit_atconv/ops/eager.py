"""Whether a tensor has concrete values, or is a placeholder in a program that is being traced or transformed."""

import torch
from torch import nn

PLAIN_CLASSES = (torch.Tensor, nn.Parameter)  # and no subclass: quantized, sharded and fake tensors are subclasses


def is_eager(x: torch.Tensor) -> bool:
    """Whether `x` is a plain tensor whose operations run immediately.

    If so, its values may be checked, results derived from it may be cached between calls, and a module's weights may be
    used without calling the module. False under torch.compile and torch.export, whose tensors are placeholders, and for
    every subclass of Tensor: fake tensors have no values, and quantized or sharded weights store theirs differently.
    """
    return not torch.compiler.is_compiling() and type(x) in PLAIN_CLASSES


def may_cache(x: torch.Tensor) -> bool:
    """Whether tensors made on behalf of `x` may be kept for later calls: eager ones, outside of torch.func.

    Its transforms wrap every result, also of constants, and the wrapper ends with the transform.
    """
    return is_eager(x) and not torch._C._are_functorch_transforms_active()
