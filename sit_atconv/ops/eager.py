"""Whether a tensor holds values that Python may look at and keep, or only stands for them in a program being made."""

import torch
from torch import nn

PLAIN_CLASSES = (torch.Tensor, nn.Parameter)  # and no subclass: quantized, sharded and fake tensors are subclasses


def is_eager(x: torch.Tensor) -> bool:
    """Whether `x` is a plain tensor and operations on it run at once.

    If so, its values may be checked, what is derived from it may be cached between calls, and a module's weights may be
    used without calling the module. False under torch.compile and torch.export, whose tensors stand for many, and for
    every subclass of Tensor: those of FakeTensorMode have no values, those of quantized or sharded weights are not what
    they look like.
    """
    return not torch.compiler.is_compiling() and type(x) in PLAIN_CLASSES
