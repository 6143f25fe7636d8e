"""What PyTorch's profiler reports about one call: its peak memory, and its time by operation."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .timing import synchronize


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence the lines that PyTorch's profiler prints when it starts; it has no setting for that."""
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
    """Bytes allocated at the peak of a call beyond what was allocated before: activations, results, new gradients."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fn()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    # Each event is one allocation (positive) or release (negative) of PyTorch's allocator.
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([nbytes for _, nbytes in changes]).max(initial=0))


def time_by_operation(fn: Callable[[], object], device: torch.device, count: int = 8) -> dict[str, float]:
    """Share of a call's time by operation: the `count` largest by name, then "other".

    The names are those of PyTorch's operations on a CPU, and of kernels on a GPU.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with _quiet_stderr(), profile(activities=activities) as profiler:
        fn()
        synchronize(device)
    return shares_of_events(profiler.key_averages(), device, count)


def shares_of_events(events: Iterable[Any], device: torch.device, count: int) -> dict[str, float]:
    """Shares of time of the profiler's averaged events: the `count` largest by name, then "other".

    On a GPU only kernels count, because an operation of the CPU also carries the time of the kernels that it launched.
    Annotations such as "Torch-Compiled Region" enclose other events and do not count either.
    """
    on_gpu = device.type == "cuda"
    kind, clock = (DeviceType.CUDA, "self_device_time_total") if on_gpu else (DeviceType.CPU, "self_cpu_time_total")
    events = [event for event in events if event.device_type == kind and not event.is_user_annotation]
    spent = sorted(((getattr(event, clock), event.key) for event in events), reverse=True)
    total = sum(time for time, _ in spent)
    shares = {name: time / total for time, name in spent[:count]}
    return {**shares, "other": 1 - sum(shares.values())}
