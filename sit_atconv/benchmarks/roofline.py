"""The least time that the hardware allows: measured arithmetic rate and memory bandwidth, and the roofline of both."""

from collections.abc import Callable

import torch

from ..ops.linear import linear
from .timing import measure


def roofline_ms(operations: list[tuple[int, int]], flops_per_second: float, bytes_per_second: float) -> float:
    """Least milliseconds for operations that run one after the other, each bound by arithmetic or by memory.

    Args:
        operations: (floating-point operations, bytes read and written) of each.
        flops_per_second, bytes_per_second: what the device is capable of.
    """
    return 1e3 * sum(max(flops / flops_per_second, nbytes / bytes_per_second) for flops, nbytes in operations)


def _best_seconds(fn: Callable[[], object], device: torch.device, clock: Callable[[], float] | None) -> float:
    return min(measure({"": fn}, 10, 3, device, clock=clock)[""]) / 1e3


def matrix_rate(dtype: torch.dtype, device: torch.device, clock: Callable[[], float] | None = None) -> float:
    """Floating-point operations per second of a large matrix product, computed as the models do; the best of ten.

    The clock is that of `measure`.
    """
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / _best_seconds(lambda: linear(a, b), device, clock)


def copy_bandwidth(device: torch.device, clock: Callable[[], float] | None = None) -> float:
    """Bytes read and written per second when copying a tensor that fits no cache; the best of ten, by the clock."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)  # 1 GiB, 256 MiB
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device, clock)
