"""Measuring calls against each other: paired times, peak memory, and the time that the hardware allows."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from ..ops.linear import linear

MIN_REPEATS = 3  # that are counted, however long they take


def turns(names: list[str], repeat: int) -> list[str]:
    """The order of one repeat: rotated by one each time, and read backwards in every other full rotation.

    Over 2·len(names) repeats every name takes every place twice, and follows each neighbour as often as it leads it.
    """
    first = repeat % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if (repeat // len(names)) % 2 else order


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    callables: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    device: torch.device,
    max_seconds: float = float("inf"),
    times: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Time each callable in turn, again and again. Gradient mode is the caller's.

    Args:
        callables: by name.
        repeats: times per callable; within a repeat, in the order of `turns`.
        warmup: rounds before that, not counted.
        device: on which they run.
        max_seconds: no round is begun after that time, once 3 have been counted. Warm-up does not count.
        times: an empty dict to fill, round by round: what an interrupt leaves of it are whole rounds.

    Returns:
        Milliseconds by name: (repeats,) each, so that entry i of all is from the same repeat.
    """
    times = {} if times is None else times
    for repeat in tqdm(range(-warmup, repeats), desc="rounds", leave=False, disable=None):
        if repeat == 0:
            begin = time.perf_counter()
        if repeat >= MIN_REPEATS and time.perf_counter() - begin > max_seconds:
            break
        elapsed = {}
        for name in turns(list(callables), repeat):
            synchronize(device)
            start = time.perf_counter()
            callables[name]()
            synchronize(device)
            elapsed[name] = (time.perf_counter() - start) * 1e3
        if repeat >= 0:
            # Made anew in one step, so that an interrupt finds a round in all lists or in none.
            times.update({name: [*times.get(name, []), elapsed[name]] for name in callables})
    return times


def quartiles(values: list[float] | np.ndarray) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def summarize(times: Mapping[str, list[float]], baselines: Mapping[str, str]) -> dict[str, dict]:
    """Quartiles of the times of `measure`, and of their ratios to a baseline's in the same repeat.

    Args:
        times: milliseconds by name.
        baselines: for each name the one that it is compared with.
    """
    return {
        name: {
            "ms": quartiles(values),
            "baseline": baselines[name],
            "ratio": quartiles(np.array(values) / np.array(times[baselines[name]])),
            "times_ms": values,
        }
        for name, values in times.items()
    }


@contextmanager
def _quiet_stderr():
    """Keep PyTorch's profiler from writing to the terminal that it started, which no setting of its own does."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def peak_memory(fn: Callable[[], object], device: torch.device) -> int:
    """The bytes that a call holds at its peak, beyond what was there before: activations, results, new gradients."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fn()
    # Each event is one allocation (positive) or release (negative) of PyTorch's allocator.
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([nbytes for _, nbytes in changes]).max(initial=0))


def time_by_operation(fn: Callable[[], object], device: torch.device, count: int = 8) -> dict[str, float]:
    """What PyTorch's profiler finds a call to spend its time on: the largest shares by name, then "other".

    The names are those of PyTorch's operations on a CPU, and of kernels on a GPU.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with _quiet_stderr(), profile(activities=activities) as profiler:
        fn()
        synchronize(device)
    return shares_of_events(profiler.key_averages(), device, count)


def shares_of_events(events: Iterable, device: torch.device, count: int) -> dict[str, float]:
    """The shares of the profiler's averaged events by name, the largest first, then "other".

    An operation of the CPU bears the time of the kernels that it launched, too: only what ran on the device counts.
    Marks such as "Torch-Compiled Region" enclose other events.
    """
    on_gpu = device.type == "cuda"
    kind, clock = (DeviceType.CUDA, "self_device_time_total") if on_gpu else (DeviceType.CPU, "self_cpu_time_total")
    events = [event for event in events if event.device_type == kind and not event.is_user_annotation]
    spent = sorted(((getattr(event, clock), event.key) for event in events), reverse=True)
    total = sum(time for time, _ in spent)
    shares = {name: time / total for time, name in spent[:count]}
    return {**shares, "other": 1 - sum(shares.values())}


def roofline_ms(operations: list[tuple[int, int]], flops_per_second: float, bytes_per_second: float) -> float:
    """The least time for these operations one after the other: each is bound by arithmetic or by memory."""
    return 1e3 * sum(max(flops / flops_per_second, nbytes / bytes_per_second) for flops, nbytes in operations)


def _best_seconds(fn: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    return min(measure({"": fn}, repeats, 3, device)[""]) / 1e3


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product as the models compute it, the best of ten."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / _best_seconds(lambda: linear(a, b), device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying a tensor that no cache holds, the best of ten."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)  # 1 GiB, 256 MiB
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)
