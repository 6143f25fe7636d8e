"""Times of ATConv's convolution in each way it can be computed, of linear layers, and of ATConv and self-attention.

Shapes: B batch, N tokens (a square number), C channels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt

import torch
import torch.nn.functional as F
from torch import nn

from ..models.atconv import ATConv
from ..models.attention import SelfAttention
from ..ops.depthwise_conv import (
    channels_last_depthwise_conv,
    depthwise_conv,
    naive_depthwise_conv,
    planes_depthwise_conv,
)
from ..ops.linear import linear
from ..utils.checks import check_choice, check_count
from ..utils.tables import markdown_table
from ..utils.text import counted
from .settings import DTYPES, check_shape
from .timing import measure, quartiles

WARMUP_ROUNDS = 3
# XL/2 at 256 px; S/2 at 512 px, at 1024 px, and at 256 px in a batch
SHAPES = [[1, 256, 1152], [1, 1024, 384], [1, 4096, 384], [4, 256, 384]]
Functions = Mapping[str, Callable[..., torch.Tensor]]


def bench(
    shapes: list[list[int]] = SHAPES,
    device: str = "cpu",
    dtype: str = "float32",
    rounds: int = 30,
    threads: int | None = None,
    compile: bool = False,
) -> None:
    """Time every way to compute the convolution, and both mixers, forward and with the backward pass.

    Args:
        shapes: list of shapes (B, N, C); N must be a square number.
        device: cpu or cuda.
        dtype: data type of tokens, kernels and weights: float32, bfloat16 or float16.
        rounds: number of rounds that are counted.
        threads: number of CPU threads within an operation. If null, PyTorch's choice.
        compile: also time the convolution and the mixers under torch.compile.

    Raises:
        ValueError: if an argument cannot be used; the message names the field, the value and what it may be.
    """
    for shape in shapes:
        check_shape(shape)
    check_choice("device", device, ("cpu", "cuda"))
    check_choice("dtype", dtype, DTYPES)
    check_count("rounds", rounds)
    if threads is not None:
        check_count("threads", threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but PyTorch sees no GPU here; choose cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    threads_and_rounds = f"{counted(torch.get_num_threads(), 'thread')}, {counted(rounds, 'round')}"
    print(f"torch {torch.__version__}, {device}, {dtype}, {threads_and_rounds}\n")
    for shape in shapes:
        bench_shape(shape, getattr(torch, dtype), torch.device(device), rounds, compile)


def bench_shape(shape: list[int], dtype: torch.dtype, device: torch.device, rounds: int, compiled: bool) -> None:
    """Print the tables of one (B, N, C): convolution, linear layer and mixer, forward and forward + backward."""
    if compiled:
        torch.compiler.reset()  # so that each shape is compiled for itself
    B, N, C = shape
    grid = (isqrt(N), isqrt(N))
    generator = torch.Generator().manual_seed(0)
    tokens, upstream = (torch.randn(2, B, N, C, generator=generator).to(device, dtype)).unbind()
    kernels = torch.randn(B, 9, C, generator=generator).to(device, dtype).transpose(1, 2)  # as ATConv makes them
    mixers = build_mixers(C, dtype, device, compiled)
    weight = torch.randn(C, C, generator=generator).to(device, dtype)

    groups: dict[str, tuple[Functions, tuple[torch.Tensor, ...], tuple]] = {
        "convolution": (convolutions(compiled), (tokens, kernels), (grid,)),
        "projection": ({"F.linear": F.linear, "linear": linear}, (tokens, weight), ()),
        "mixer": (mixers, (tokens,), (grid,)),
    }
    with torch.no_grad():
        for title, (functions, inputs, options) in groups.items():
            forward = {name: partial(function, *inputs, *options) for name, function in functions.items()}
            print_times(f"{B}×{N}×{C}: {title}", measure(forward, rounds, WARMUP_ROUNDS, device))
    for title, (functions, inputs, options) in groups.items():
        both = {name: differentiated(function, inputs, options, upstream) for name, function in functions.items()}
        print_times(f"{B}×{N}×{C}: {title}, forward + backward", measure(both, rounds, WARMUP_ROUNDS, device))


def convolutions(compiled: bool) -> Functions:
    """The ways to compute ATConv's convolution, by name."""
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "planes": planes_depthwise_conv,
        "naive": naive_depthwise_conv,
        "channels last": channels_last_depthwise_conv,
        "depthwise_conv": depthwise_conv,
    }
    if compiled:
        ways["depthwise_conv, compiled"] = torch.compile(depthwise_conv, fullgraph=True, dynamic=False)
    return ways


def build_mixers(C: int, dtype: torch.dtype, device: torch.device, compiled: bool) -> Functions:
    """Self-attention and ATConv of width C, by name."""
    heads = C // (72 if C % 72 == 0 else 64)  # as in SiT-XL, and as in the smaller models
    mixers: dict[str, Callable[..., torch.Tensor]] = {
        name: mixer.to(device, dtype) for name, mixer in {"SA": SelfAttention(C, heads), "ATConv": ATConv(C)}.items()
    }
    if compiled:
        mixers |= {f"{n}, compiled": torch.compile(m, fullgraph=True, dynamic=False) for n, m in mixers.items()}
    return mixers


def differentiated(
    function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], options: tuple, upstream: torch.Tensor
) -> Callable[[], object]:
    """A call of the forward and backward pass, with respect to the inputs and to a module's weights."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    weights = list(function.parameters()) if isinstance(function, nn.Module) else []
    return lambda: torch.autograd.grad(function(*leaves, *options), [*leaves, *weights], upstream)


def print_times(title: str, times: dict[str, list[float]]) -> None:
    print(times_table(title, times), end="\n\n", flush=True)


def times_table(title: str, times: dict[str, list[float]]) -> str:
    """Median and best milliseconds, and their ratios to the first row, with quartiles of the ratios within rounds."""
    baseline = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        _, median, _ = quartiles(values)
        low, ratio, high = quartiles([a / b for a, b in zip(values, baseline, strict=True)])
        best, best_ratio = min(values), min(values) / min(baseline)
        rows.append([name, f"{median:.3f}", f"{ratio:.3f} [{low:.3f}–{high:.3f}]", f"{best:.3f}", f"{best_ratio:.3f}"])
    return markdown_table([title, "median ms", "ratio", "best ms", "ratio"], rows)
