"""Triton kernels of the per-sample depthwise convolution: its result, its gradients and its directional derivative.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, C channels, K = k² taps j in row-major order
over (dy, dx), which lie `dilation` tokens apart. Tokens are read and written in their own layout, (B, N, C):
neighbouring lanes hold neighbouring channels, so every access is coalesced and nothing is transposed. One program
computes a tile of the grid for a block of channels; its k² shifted reads of the tile hit the L1 cache, so each token is
read from device memory about once. Sums are accumulated in float32.

This module can be imported without Triton; `triton` is then None. depthwise_conv_operator.py makes PyTorch operators of
the functions at its end.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch, Windows, macOS
    triton = None

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BLOCK_C = 64  # channels per program: in bfloat16, one 128-byte cache line per token
LARGEST_TILE = 64  # tokens per program
ENOUGH_PROGRAMS = 256  # with fewer, a current GPU has idle multiprocessors, and smaller tiles are faster


def kernel_side(kernels: torch.Tensor) -> int:
    """Return k, the side of kernels (…, k²)."""
    return int(kernels.shape[-1] ** 0.5 + 0.5)  # TorchScript's round() returns no integer


if triton is not None:

    @triton.jit
    def locate(height, width, channels, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
        """This program's (sample, tile, rows (P,), columns (P,), channels (BLOCK_C,)), P = BLOCK_H·BLOCK_W."""
        channel_blocks = tl.cdiv(channels, BLOCK_C)
        tiles_w = tl.cdiv(width, BLOCK_W)
        tiles = tl.cdiv(height, BLOCK_H) * tiles_w
        program = tl.program_id(0)
        c = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
        tile = program // channel_blocks % tiles
        b = program // channel_blocks // tiles
        p = tl.arange(0, BLOCK_H * BLOCK_W)
        h = tile // tiles_w * BLOCK_H + p // BLOCK_W
        w = tile % tiles_w * BLOCK_W + p % BLOCK_W
        # 64 bits: offsets computed from them may exceed 2³¹ elements.
        return b.to(tl.int64), tile.to(tl.int64), h, w, c

    @triton.jit
    def forward_kernel(
        tokens_ptr,
        kernels_ptr,
        out_ptr,
        height,
        width,
        channels,
        kernels_stride_b,
        kernels_stride_c,
        kernels_stride_j,
        SIZE: tl.constexpr,
        DILATION: tl.constexpr,
        BLOCK_H: tl.constexpr,
        BLOCK_W: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        """out[b, p, c] = Σ_j kernels[b, c, j] · tokens[b, p + offset_j, c]."""
        b, _, h, w, c = locate(height, width, channels, BLOCK_H, BLOCK_W, BLOCK_C)
        c_inside = c < channels
        center = (b * height * width + h * width + w)[:, None] * channels + c[None, :]  # (P, BLOCK_C)
        kernels_ptr += b * kernels_stride_b + c * kernels_stride_c
        total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), dtype=tl.float32)
        for row in range(-(SIZE // 2), SIZE // 2 + 1):  # not unrolled: 49 loads at once would not fit the registers
            for column in tl.static_range(-(SIZE // 2), SIZE // 2 + 1):
                dy, dx = row * DILATION, column * DILATION
                inside = (h + dy >= 0) & (h + dy < height) & (w + dx >= 0) & (w + dx < width)
                shifted = tokens_ptr + center + (dy * width + dx) * channels
                x = tl.load(shifted, mask=inside[:, None] & c_inside[None, :], other=0.0)
                tap = tl.load(kernels_ptr, mask=c_inside, other=0.0)
                kernels_ptr += kernels_stride_j
                total += tap.to(tl.float32)[None, :] * x.to(tl.float32)
        written = ((h < height) & (w < width))[:, None] & c_inside[None, :]
        tl.store(out_ptr + center, total.to(out_ptr.dtype.element_ty), mask=written)

    @triton.jit
    def tangent_kernel(
        tokens_ptr,
        tokens_tangent_ptr,
        kernels_ptr,
        kernels_tangent_ptr,
        out_ptr,
        height,
        width,
        channels,
        kernels_stride_b,
        kernels_stride_c,
        kernels_stride_j,
        SIZE: tl.constexpr,
        DILATION: tl.constexpr,
        BLOCK_H: tl.constexpr,
        BLOCK_W: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        """out[b, p, c] = Σ_j kernels[b, c, j] · d_tokens[b, q, c] + d_kernels[b, c, j] · tokens[b, q, c].

        q = p + offset_j. Both kernels have the same strides.
        """
        b, _, h, w, c = locate(height, width, channels, BLOCK_H, BLOCK_W, BLOCK_C)
        c_inside = c < channels
        center = (b * height * width + h * width + w)[:, None] * channels + c[None, :]  # (P, BLOCK_C)
        taps = b * kernels_stride_b + c * kernels_stride_c
        total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), dtype=tl.float32)
        for row in range(-(SIZE // 2), SIZE // 2 + 1):
            for column in tl.static_range(-(SIZE // 2), SIZE // 2 + 1):
                dy, dx = row * DILATION, column * DILATION
                inside = (h + dy >= 0) & (h + dy < height) & (w + dx >= 0) & (w + dx < width)
                shifted = center + (dy * width + dx) * channels
                mask = inside[:, None] & c_inside[None, :]
                x = tl.load(tokens_ptr + shifted, mask=mask, other=0.0).to(tl.float32)
                x_tangent = tl.load(tokens_tangent_ptr + shifted, mask=mask, other=0.0).to(tl.float32)
                tap = tl.load(kernels_ptr + taps, mask=c_inside, other=0.0).to(tl.float32)
                tap_tangent = tl.load(kernels_tangent_ptr + taps, mask=c_inside, other=0.0).to(tl.float32)
                taps += kernels_stride_j
                total += tap[None, :] * x_tangent + tap_tangent[None, :] * x
        written = ((h < height) & (w < width))[:, None] & c_inside[None, :]
        tl.store(out_ptr + center, total.to(out_ptr.dtype.element_ty), mask=written)

    @triton.jit
    def backward_kernel(
        grad_ptr,
        tokens_ptr,
        kernels_ptr,
        grad_tokens_ptr,
        partial_ptr,
        height,
        width,
        channels,
        kernels_stride_b,
        kernels_stride_c,
        kernels_stride_j,
        SIZE: tl.constexpr,
        DILATION: tl.constexpr,
        BLOCK_H: tl.constexpr,
        BLOCK_W: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        """Both gradients from one pass over `grad` and `tokens`.

        grad_tokens[b, q, c] = Σ_j kernels[b, c, j] · grad[b, q − offset_j, c], and summed over this tile's q only,
        partial[b, tile, j, c] = Σ_q tokens[b, q, c] · grad[b, q − offset_j, c].
        """
        b, tile, h, w, c = locate(height, width, channels, BLOCK_H, BLOCK_W, BLOCK_C)
        c_inside = c < channels
        center = (b * height * width + h * width + w)[:, None] * channels + c[None, :]  # (P, BLOCK_C)
        written = ((h < height) & (w < width))[:, None] & c_inside[None, :]
        x = tl.load(tokens_ptr + center, mask=written, other=0.0).to(tl.float32)
        kernels_ptr += b * kernels_stride_b + c * kernels_stride_c
        tiles = tl.cdiv(height, BLOCK_H) * tl.cdiv(width, BLOCK_W)
        partial_ptr += (b * tiles + tile) * SIZE * SIZE * channels + c
        total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), dtype=tl.float32)
        for row in range(-(SIZE // 2), SIZE // 2 + 1):
            for column in tl.static_range(-(SIZE // 2), SIZE // 2 + 1):
                dy, dx = row * DILATION, column * DILATION
                inside = (h - dy >= 0) & (h - dy < height) & (w - dx >= 0) & (w - dx < width)
                shifted = grad_ptr + center - (dy * width + dx) * channels
                grad = tl.load(shifted, mask=inside[:, None] & c_inside[None, :], other=0.0).to(tl.float32)
                tap = tl.load(kernels_ptr, mask=c_inside, other=0.0)
                total += tap.to(tl.float32)[None, :] * grad
                tl.store(partial_ptr, tl.sum(x * grad, axis=0), mask=c_inside)
                kernels_ptr += kernels_stride_j
                partial_ptr += channels
        tl.store(grad_tokens_ptr + center, total.to(grad_tokens_ptr.dtype.element_ty), mask=written)


def choose_tile(batch: int, height: int, width: int, channels: int) -> tuple[int, int]:
    """Return (rows, columns) of a program's tile: powers of two, near-square, as large as keeps the GPU busy."""
    rows = min(8, triton.next_power_of_2(height))
    columns = min(LARGEST_TILE // rows, triton.next_power_of_2(width))
    per_tile = batch * triton.cdiv(channels, BLOCK_C)
    while rows * columns > 16 and per_tile * triton.cdiv(height, rows) * triton.cdiv(width, columns) < ENOUGH_PROGRAMS:
        rows, columns = (rows // 2, columns) if rows >= columns else (rows, columns // 2)
    return rows, columns


def launch(kernel, tensors: tuple[torch.Tensor, ...], kernels: torch.Tensor, batch: int, sizes: tuple) -> None:
    """Run `kernel` on the tensors' device; sizes: (H, W, C, k, dilation, rows of a tile, columns of a tile)."""
    height, width, channels, size, dilation, rows, columns = sizes
    programs = batch * triton.cdiv(height, rows) * triton.cdiv(width, columns) * triton.cdiv(channels, BLOCK_C)
    with torch.cuda.device_of(tensors[0]):
        kernel[(programs,)](
            *tensors,
            height,
            width,
            channels,
            *kernels.stride(),
            SIZE=size,
            DILATION=dilation,
            BLOCK_H=rows,
            BLOCK_W=columns,
            BLOCK_C=BLOCK_C,
            # 16 sums a thread: on sm_90 64 registers forward, 94 backward, no spills
            num_warps=max(1, rows * columns // 8),
        )


def triton_forward(tokens: torch.Tensor, kernels: torch.Tensor, height: int, width: int, dilation: int) -> torch.Tensor:
    """Convolve tokens (B, N, C) with kernels (B, C, k²) -> (B, N, C), in the dtype of `tokens`.

    The taps lie `dilation` tokens apart. Non-contiguous tokens are copied. Kernels may have any strides and are read
    fastest if channels are adjacent.
    """
    tokens = tokens.contiguous()
    B, N, C = tokens.shape
    assert height * width == N, "or the kernel would read beyond the tokens"
    out = torch.empty_like(tokens)
    tile = choose_tile(B, height, width, C)
    sizes = (height, width, C, kernel_side(kernels), dilation, *tile)
    launch(forward_kernel, (tokens, kernels, out), kernels, B, sizes)
    return out


def triton_tangent(
    tokens: torch.Tensor,
    tokens_tangent: torch.Tensor,
    kernels: torch.Tensor,
    kernels_tangent: torch.Tensor,
    height: int,
    width: int,
    dilation: int,
) -> torch.Tensor:
    """conv(d_tokens, kernels) + conv(tokens, d_kernels) in one pass: (B, N, C), in the dtype of `tokens`.

    Arguments as for `triton_forward`. Reads each input once, where two convolutions and their sum would read and write
    seven arrays of (B, N, C) instead of three, and rounds once.
    """
    tokens, tokens_tangent = tokens.contiguous(), tokens_tangent.contiguous()
    if kernels_tangent.stride() != kernels.stride():
        kernels, kernels_tangent = kernels.contiguous(), kernels_tangent.contiguous()
    B, N, C = tokens.shape
    assert height * width == N and tokens_tangent.shape == tokens.shape and kernels_tangent.shape == kernels.shape
    out = torch.empty_like(tokens)
    sizes = (height, width, C, kernel_side(kernels), dilation, *choose_tile(B, height, width, C))
    launch(tangent_kernel, (tokens, tokens_tangent, kernels, kernels_tangent, out), kernels, B, sizes)
    return out


def triton_backward(
    grad: torch.Tensor, tokens: torch.Tensor, kernels: torch.Tensor, height: int, width: int, dilation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of tokens (B, N, C) and kernels (B, C, k²), each in its dtype, from the output's.

    Each tile writes its own sums, which are added afterwards: without atomics, equal inputs give equal bits.
    """
    grad, tokens = grad.contiguous(), tokens.contiguous()
    B, _, C = tokens.shape
    K = kernels.shape[-1]
    rows, columns = choose_tile(B, height, width, C)
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    grad_tokens = torch.empty_like(tokens)
    partial = torch.empty(B, tiles, K, C, dtype=torch.float32, device=tokens.device)
    sizes = (height, width, C, kernel_side(kernels), dilation, rows, columns)
    launch(backward_kernel, (grad, tokens, kernels, grad_tokens, partial), kernels, B, sizes)
    return grad_tokens, partial.sum(1).to(kernels.dtype).transpose(1, 2)
