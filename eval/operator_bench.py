"""Time ATConv's convolution in each way it can be computed, the linear layers, and ATConv against self-attention.

    python eval/operator_bench.py --threads 1
    python eval/operator_bench.py --device cuda --dtype bfloat16 --compile true \
        --shapes '[[32, 256, 1152], [32, 1024, 1152], [32, 4096, 1152], [1, 256, 1152]]'

Shapes are (B, N, C) with N a square. All ways take turns within every round, so that a slow phase of the machine meets
them alike; ratios are to the first of a table, within each round before their median. Times are wall-clock; the best of
them tells the most where other programs share the machine.
"""

import statistics
import sys
from collections.abc import Callable
from math import isqrt

import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser

from sit_atconv import ATConv
from sit_atconv.benchmarks.timing import measure, quartiles
from sit_atconv.models.transformer_sit import SelfAttention
from sit_atconv.ops.depthwise_conv import (
    channels_last_depthwise_conv,
    depthwise_conv,
    naive_depthwise_conv,
    planes_depthwise_conv,
)
from sit_atconv.ops.linear import linear
from sit_atconv.utils.checks import check_choice, check_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# XL/2 at 256 px; S/2 at 512 px, at 1024 px, and at 256 px in a batch
SHAPES = [[1, 256, 1152], [1, 1024, 384], [1, 4096, 384], [4, 256, 384]]


def markdown_table(title: str, times: dict[str, list[float]]) -> str:
    """Median and best milliseconds, and each one's ratio to the first, with the quartiles of the rounds' ratios."""
    baseline = next(iter(times.values()))
    rows = [f"| {title} | median ms | ratio | best ms | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, values in times.items():
        low, middle, high = quartiles([a / b for a, b in zip(values, baseline, strict=True)])
        rows.append(f"| {name} | {statistics.median(values):.3f} | {middle:.3f} [{low:.3f}–{high:.3f}] ")
        rows[-1] += f"| {min(values):.3f} | {min(values) / min(baseline):.3f} |"
    return "\n".join(rows) + "\n"


def bench_shape(shape: list[int], dtype: torch.dtype, device: torch.device, rounds: int, compiled: bool) -> None:
    """Print the tables of one (B, N, C): convolution, linear layer and mixer, forward and forward + backward."""
    B, N, C = shape
    grid = (isqrt(N), isqrt(N))
    generator = torch.Generator().manual_seed(0)
    tokens, upstream = (torch.randn(2, B, N, C, generator=generator).to(device, dtype)).unbind()
    kernels = torch.randn(B, 9, C, generator=generator).to(device, dtype).transpose(1, 2)  # as ATConv makes them
    convolutions = {
        "planes": planes_depthwise_conv,
        "naive": naive_depthwise_conv,
        "channels last": channels_last_depthwise_conv,
        "depthwise_conv": depthwise_conv,
    }
    heads = C // (72 if C % 72 == 0 else 64)  # as SiT-XL and as the smaller ones
    mixers = {name: m.to(device, dtype) for name, m in {"SA": SelfAttention(C, heads), "ATConv": ATConv(C)}.items()}
    if compiled:
        torch.compiler.reset()
        convolutions["depthwise_conv, compiled"] = torch.compile(depthwise_conv, fullgraph=True, dynamic=False)
        mixers |= {f"{n}, compiled": torch.compile(m, fullgraph=True, dynamic=False) for n, m in mixers.items()}

    weight = torch.randn(C, C, generator=generator).to(device, dtype)
    products = {"F.linear": F.linear, "linear": linear}

    def differentiated(function: Callable, *inputs: torch.Tensor, options: tuple = (grid,)) -> Callable[[], object]:
        inputs = [x.detach().requires_grad_() for x in inputs]
        weights = list(function.parameters()) if isinstance(function, torch.nn.Module) else []
        return lambda: torch.autograd.grad(function(*inputs, *options), [*inputs, *weights], upstream)

    title = f"{B}×{N}×{C}"
    with torch.no_grad():
        ways = {name: lambda conv=conv: conv(tokens, kernels, grid) for name, conv in convolutions.items()}
        print(markdown_table(f"{title}: convolution", measure(ways, rounds, 3, device)), flush=True)
        ways = {name: lambda product=product: product(tokens, weight) for name, product in products.items()}
        print(markdown_table(f"{title}: projection", measure(ways, rounds, 3, device)), flush=True)
        ways = {name: lambda mixer=mixer: mixer(tokens, grid) for name, mixer in mixers.items()}
        print(markdown_table(f"{title}: mixer", measure(ways, rounds, 3, device)), flush=True)
    ways = {name: differentiated(conv, tokens, kernels) for name, conv in convolutions.items()}
    print(markdown_table(f"{title}: convolution, forward + backward", measure(ways, rounds, 3, device)), flush=True)
    ways = {name: differentiated(product, tokens, weight, options=()) for name, product in products.items()}
    print(markdown_table(f"{title}: projection, forward + backward", measure(ways, rounds, 3, device)), flush=True)
    ways = {name: differentiated(mixer, tokens) for name, mixer in mixers.items()}
    print(markdown_table(f"{title}: mixer, forward + backward", measure(ways, rounds, 3, device)), flush=True)


def bench(
    shapes: list[list[int]] = SHAPES,
    device: str = "cpu",
    dtype: str = "float32",
    rounds: int = 30,
    threads: int | None = None,
    compile: bool = False,
) -> None:
    """Time every way of the convolution, and both mixers, forward and with the backward pass.

    Args:
        shapes: (B, N, C) each; N is a square.
        device: cpu or cuda.
        dtype: of tokens, kernels and weights: float32, bfloat16 or float16.
        rounds: rounds that are counted.
        threads: CPU threads within an operation; PyTorch's choice where null.
        compile: add what torch.compile makes of the convolution and of the mixers.

    Raises:
        ValueError: naming the field, the value and what it may be.
    """
    for shape in shapes:
        if len(shape) != 3 or min(shape) < 1 or isqrt(shape[1]) ** 2 != shape[1]:
            raise ValueError(f"shape={shape} must be [B, N, C], all positive and N a square, such as {SHAPES[0]}")
        if shape[2] % 64 and shape[2] % 72:
            raise ValueError(f"shape={shape}: C={shape[2]} must be a multiple of 64 or 72, the widths of a head")
    check_choice("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but PyTorch sees no GPU here; choose cpu")
    check_choice("dtype", dtype, DTYPES)
    check_count("rounds", rounds)
    if threads is not None:
        check_count("threads", threads)
        torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {device}, {dtype}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    for shape in shapes:
        bench_shape(shape, DTYPES[dtype], torch.device(device), rounds, compile)


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = ArgumentParser(prog="operator_bench.py", description=__doc__.partition("\n")[0])
    parser.add_function_arguments(bench)
    arguments = parser.parse_args(argv)
    try:
        bench(**vars(arguments))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
