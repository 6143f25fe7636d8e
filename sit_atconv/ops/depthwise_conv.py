"""The depthwise convolution of ATConv, with kernels per sample: its definition, and a fast path for each device.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, C channels, K = k² taps j in row-major order
over (dy, dx). With a dilation d, the taps lie d tokens apart.
"""

import torch
import torch.nn.functional as F

from .depthwise_conv_operator import needs_gradient, register_depthwise_conv
from .depthwise_conv_triton import KERNEL_DTYPES, kernel_side, triton

CACHED_ELEMENTS = 2**18  # largest input of one CPU convolution: 1 MiB of float32, which fits a core's cache


def naive_depthwise_conv(
    tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int = 1
) -> torch.Tensor:
    """The definition, tap by tap: y[b, p, c] = Σ_j kernels[b, c, j] · tokens[b, p + offset_j, c], zero padding.

    The fast paths are tested against it. Arguments as for `depthwise_conv`.
    """
    B, N, C = tokens.shape
    H, W = grid
    k = kernel_side(kernels)
    p = k // 2 * dilation
    padded = F.pad(tokens.view(B, H, W, C), (0, 0, p, p, p, p))  # (B, H+2p, W+2p, C)
    y = torch.zeros_like(tokens)
    for j in range(k * k):
        dy, dx = j // k * dilation, j % k * dilation
        shifted = padded[:, dy : dy + H, dx : dx + W].reshape(B, N, C)
        y = y + kernels[:, None, :, j] * shifted
    return y


def planes_depthwise_conv(
    tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int = 1
) -> torch.Tensor:
    """One convolution with B·C groups over transposed tokens: PyTorch's fastest on GPUs. See `depthwise_conv`.

    TorchScript compiles it, so it is written with what TorchScript knows.
    """
    B, N, C = tokens.shape
    k = kernel_side(kernels)
    planes = tokens.transpose(1, 2).reshape(1, B * C, grid[0], grid[1])
    weight = kernels.reshape(B * C, 1, k, k)
    y = F.conv2d(planes, weight, padding=k // 2 * dilation, dilation=dilation, groups=B * C)  # (1, B·C, H, W)
    return y.view(B, C, N).transpose(1, 2)  # (B, N, C)


def one_image_depthwise_conv(
    tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int = 1
) -> torch.Tensor:
    """Convolve tokens (N, C) with kernels (C, k²) -> (1, H, W, C), in the channels-last layout that suits CPUs."""
    C, k = len(kernels), kernel_side(kernels)
    image = tokens.reshape(1, *grid, C).permute(0, 3, 1, 2)  # (1, C, H, W)
    weight = kernels.reshape(C, 1, k, k)
    return F.conv2d(image, weight, padding=k // 2 * dilation, dilation=dilation, groups=C).permute(0, 2, 3, 1)


def channels_last_depthwise_conv(
    tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int = 1
) -> torch.Tensor:
    """Channels-last convolutions: the fastest on CPUs, forward and backward. See `depthwise_conv`.

    Tokens (1, N, C) are a channels-last image as they are. Samples small enough to share the cache become the channels
    of one image, (1, H, W, B·C), for which runs of C numbers are copied.
    """
    B, N, C = tokens.shape
    if B == 1:
        return one_image_depthwise_conv(tokens[0], kernels[0], grid, dilation).reshape(1, N, C)
    # For larger kernels, the gradient of 768 channels and more takes oneDNN four times as long.
    limit = CACHED_ELEMENTS if kernel_side(kernels) <= 3 else CACHED_ELEMENTS // 2
    together = max(1, limit // (N * C))
    outputs = []
    for x, w in zip(tokens.split(together), kernels.split(together), strict=True):
        b = x.shape[0]
        y = one_image_depthwise_conv(x.transpose(0, 1).reshape(N, b * C), w.flatten(0, 1), grid, dilation)
        outputs.append(y.reshape(N, b, C).transpose(0, 1))  # (b, N, C)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def depthwise_conv(
    tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int = 1
) -> torch.Tensor:
    """Convolve every channel of every sample with its own k×k kernel (cross-correlation, zero padding).

    The device and the compiler decide how it is computed, which changes the result only by rounding: Triton kernels on
    GPUs, as an operator that torch.compile and torch.export keep whole; channels-last convolutions on CPUs; and under a
    compiler on CPUs the definition, which is fused into one loop and exported for any shape. docs/operator.md has
    measurements. All of them have derivatives in reverse and in forward mode, and rules for torch.vmap.

    Args:
        tokens: (B, N, C).
        kernels: (B, C, k²), one kernel per sample and channel, k odd. Their dtype may differ from that of the tokens.
        grid: (H, W) with H·W = N.
        dilation: distance of neighbouring taps, in tokens.

    Returns:
        (B, N, C), in the dtype of the tokens, or in autocast's dtype under autocast, as for other convolutions.

    Raises:
        ValueError: for a grid that does not have N places, or kernels of another shape.
    """
    B, N, C = tokens.shape
    H, W = grid
    k = kernel_side(kernels)
    if H * W != N:
        raise ValueError(f"grid={H}×{W} has {H * W} places, but there are {N} tokens")
    if kernels.shape != (B, C, k * k) or k % 2 == 0:
        raise ValueError(f"kernels has shape {tuple(kernels.shape)}, but must be ({B}, {C}, k²) with an odd k")
    device = tokens.device.type
    # The meta device, on which operations are counted, does not support autocast.
    if device != "meta" and torch.is_autocast_enabled(device) and tokens.dtype in KERNEL_DTYPES:
        tokens = tokens.to(torch.get_autocast_dtype(device))
    if device == "cuda" and triton is not None and tokens.dtype in KERNEL_DTYPES:
        return torch.ops.sit_atconv.depthwise_conv_v3(tokens, kernels, H, W, dilation)
    kernels = kernels.to(tokens.dtype)
    if torch.compiler.is_compiling():
        return naive_depthwise_conv(tokens, kernels, grid, dilation)
    # On grids narrower than the kernels, the gradient of channels-last kernels takes oneDNN 20 times as long as planes.
    if device == "cpu" and W > (k - 1) * dilation:
        # The gradient of kernels above 3×3 takes oneDNN five times as long in 16 bits as in float32.
        if k > 3 and tokens.dtype in (torch.float16, torch.bfloat16) and needs_gradient(tokens, kernels):
            wide = channels_last_depthwise_conv(tokens.float(), kernels.float(), grid, dilation)
            return wide.to(tokens.dtype)
        return channels_last_depthwise_conv(tokens, kernels, grid, dilation)
    return planes_depthwise_conv(tokens, kernels, grid, dilation)


# PyTorch's registry is shared by the whole process, which may hold several copies of this code: each saved pipeline
# folder carries one. The first copy registers the operators for all. So what `…_v3` takes and returns must never
# change; a different operator needs the next version in its name.
if triton is not None and not hasattr(torch.ops.sit_atconv, "depthwise_conv_v3"):
    register_depthwise_conv(planes_depthwise_conv)
