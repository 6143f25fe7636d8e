"""AttNet's blocks in inference on CPUs: what attnet_blocks.py computes, with fewer calls and passes over memory.

At batch 1, the Python code around an operation runs with cold caches and takes as long as a tenth of it. So the blocks
of a stage are checked at once (`run_plainly`), and then their operations follow each other directly: in place where
the operand is their own, and RMSNorm after the last layer of the channel mixer, as one number per pixel. docs/attnet.md
has measurements.

Shapes: B batch, (H, W) grid, N = H·W tokens, C channels, h hidden channels, k kernel size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from ..ops.conv_onednn import activate_, depthwise_conv_activation
from ..ops.depthwise_conv import channels_last_depthwise_conv
from ..ops.eager import PLAIN_CLASSES, is_eager
from ..ops.linear import Linear, all_modules_are_watched, is_watched
from ..ops.linear_onednn import call_onednn, onednn_takes
from .atconv import ATConv

# Above this number of hidden elements, 3 MiB, a channel mixer computes some channels at a time. PyTorch would fetch
# memory for larger ones from the operating system, page by page, each time.
CACHED_ELEMENTS = 3 * 2**18
Classes = tuple[type[nn.Module], ...]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # x, W, b -> x·Wᵀ + b


def run_plainly(
    blocks: nn.Sequential, x: torch.Tensor, kind: type[nn.Module], places: Mapping[type, Mapping[str, Classes]]
) -> bool:
    """Whether nothing but the output of blocks is asked for, so that their layers need not be called one by one.

    That is inference on a CPU in float32, outside of dual numbers, torch.func, tracing and compilers.

    Args:
        blocks: the blocks. Hooks on them and on their layers, adapters in place of layers and the like must see calls.
        x: the input of the first one.
        kind: the class of the blocks.
        places: for the class of a layer that has layers, the classes that each of these may have, by its name.
    """
    if (
        torch.is_grad_enabled()
        or not is_eager(x)
        or not x.is_cpu
        or x.dtype != torch.float32
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or all_modules_are_watched()
        or type(blocks) is not nn.Sequential
        or is_watched(blocks)
    ):
        return False
    layers: list[tuple[Any, Classes]] = [(block, (kind,)) for block in blocks._modules.values()]
    while layers:  # twice as fast as blocks.modules()
        layer, classes = layers.pop()
        if not is_plain(layer, classes):
            return False
        if layer._modules:
            known = places[type(layer)]
            layers += [(each, known.get(name, ())) for name, each in layer._modules.items() if each is not None]
    return True


def is_plain(layer: nn.Module, classes: Classes) -> bool:
    """Whether a layer is of one of `classes`, in eval mode, without hooks, and has weights as they were made."""
    if type(layer) not in classes or layer.training or is_watched(layer):
        return False
    weights = layer._parameters
    for weight in weights.values():
        if weight is not None and not (
            type(weight) in PLAIN_CLASSES and weight.dtype == torch.float32 and weight.layout == torch.strided
        ):
            return False
    return has_usual_options(layer)


def has_usual_options(layer: nn.Module) -> bool:
    """Whether a layer is one that the functions below compute; anything else can have been put in its place."""
    if type(layer) is Linear:
        return layer.weight.is_contiguous()  # oneDNN does not take any strides
    if type(layer) is ATConv:
        plain = layer.channel_gate is None and layer.average is None and len(layer.dilations) == 1
        return plain and layer.kernel_pool == "strips" and layer.kernel_activation in ("gelu", "silu")
    if type(layer) is nn.Conv2d:
        k, d, channels = layer.kernel_size[0], layer.dilation[0], layer.in_channels
        options = (layer.kernel_size, layer.dilation, layer.padding, layer.stride, layer.padding_mode)
        usual = ((k, k), (d, d), (k // 2 * d,) * 2, (1, 1), "zeros")
        return options == usual and k % 2 == 1 and layer.groups == channels == layer.out_channels
    return type(layer) is not nn.GELU or layer.approximate == "none"


def run_blocks(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Apply blocks that `run_plainly` to x (B, H, W, C)."""
    block: Any
    for block in blocks:
        # Of the layers that see all pixels, this is the smallest.
        smallest = block.token_mixer.value_proj
        product = call_onednn if onednn_takes(x, smallest.weight, smallest.bias) else F.linear
        y = mix_tokens(block.token_mixer, normalize(block.norm1, x), product)
        x = add_branch(x, y, block.gamma1)
        y = mix_channels(block.channel_mixer, normalize(block.norm2, x), product)
        x = add_branch(x, y, block.gamma2)
    return x


def normalize(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """Apply a LayerNorm."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def add_branch(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    """Compute x + γ·y in place of y."""
    return y.add_(x) if gamma is None else torch.addcmul(x, y, gamma, out=y)


def mix_tokens(mixer: Any, x: torch.Tensor, product: Product) -> torch.Tensor:
    """Apply an `ATConv` of one dilation, whose activation is "gelu" or "silu", to x (B, H, W, C)."""
    B, H, W, C = x.shape
    proj, generate, k, dilation = mixer.kernel_proj, mixer.kernel_gen, mixer.kernel_size, mixer.dilations[0]
    context = F.adaptive_avg_pool1d(x.view(B, H * W, C).transpose(1, 2), k * k).transpose(1, 2)  # (B, k², C)
    g = activate_(F.linear(context, proj.weight, proj.bias), mixer.kernel_activation)
    weight = generate.weight.expand(B, -1, -1)
    kernels = weight @ g if generate.bias is None else torch.baddbmm(generate.bias[:, None], weight, g)  # (B, k², C)
    kernels.addcmul_(torch.sigmoid(mixer.inhibition), kernels.mean(1, keepdim=True), value=-1)
    kernels = kernels.transpose(1, 2)
    y = product(x, mixer.value_proj.weight, mixer.value_proj.bias)
    y = channels_last_depthwise_conv(y.view(B, H * W, C), kernels, (H, W), dilation).view(B, H, W, C)
    return product(y, mixer.out_proj.weight, mixer.out_proj.bias)


def mix_channels(mixer: Any, x: torch.Tensor, product: Product) -> torch.Tensor:
    """Apply a `GatedMlp` to x (B, H, W, C)."""
    norm, last = mixer.norm, mixer.fc2
    pixels, h = x.shape[:-1].numel(), last.in_features
    y: Any = None  # a sum of tensors
    if isinstance(norm, nn.Identity) or norm.rule != "rms":
        return product(norm(gated(mixer, x, slice(0, h), product)), last.weight, last.bias)
    # PyTorch computes RMSNorm in four passes on CPUs. Its denominator is one number per pixel, which may divide the C
    # channels after the last layer; and its weights may scale z or the columns of that layer, whichever is smaller.
    if pixels < last.out_features:
        z = gated(mixer, x, slice(0, h), product)
        squares = squared_length(z)
        y = product(z.mul_(norm.weight), last.weight, None)
    else:
        together = h if pixels * h <= CACHED_ELEMENTS else max(CACHED_ELEMENTS // pixels // 64 * 64, 128)
        for start in range(0, h, together):
            part = slice(start, start + together)
            z = gated(mixer, x, part, product)
            share = product(z, last.weight[:, part] * norm.weight[part], None)
            if y is None:
                y, squares = share, squared_length(z)
            else:
                y.add_(share)
                squares.add_(squared_length(z))
    scale = squares.div_(h).add_(norm.eps).rsqrt_()
    return y.mul_(scale) if last.bias is None else torch.addcmul(last.bias, y, scale, out=y)


def squared_length(z: torch.Tensor) -> torch.Tensor:
    """The sum of squares of each pixel's channels, (B, H, W, channels) -> (B, H, W, 1)."""
    return torch.linalg.vector_norm(z, dim=-1, keepdim=True).square_()


def gated(mixer: Any, x: torch.Tensor, part: slice, product: Product) -> torch.Tensor:
    """act(dwconv(gate)) · value of some hidden channels of a `GatedMlp`, (B, H, W, C) -> (B, H, W, channels)."""
    conv, activation = mixer.dwconv, "silu" if isinstance(mixer.act, nn.SiLU) else "gelu"
    gate = product(x, mixer.fc1_g.weight[part], rows(mixer.fc1_g.bias, part))
    if isinstance(conv, nn.Conv2d):
        image = gate.permute(0, 3, 1, 2)  # channels-last
        bias = rows(conv.bias, part)
        image = depthwise_conv_activation(image, conv.weight[part], bias, conv.dilation[0], activation)
        gate = image.permute(0, 2, 3, 1)
    else:
        activate_(gate, activation)
    return gate.mul_(product(x, mixer.fc1_x.weight[part], rows(mixer.fc1_x.bias, part)))


def rows(bias: torch.Tensor | None, part: slice) -> torch.Tensor | None:
    """A part of a bias, if there is one."""
    return None if bias is None else bias[part]
