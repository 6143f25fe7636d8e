"""Paired timing: all candidates take turns in every round, so that slow phases of the machine affect them alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from tqdm.auto import tqdm

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MIN_ROUNDS = 3  # are always counted, however long they take


def balanced_order(names: list[str], round_number: int) -> list[str]:
    """The order of one round: rotated by one each time, and reversed in every other full rotation.

    Over 2·len(names) rounds, every name takes every place twice, and precedes every other as often as it follows it.
    """
    first = round_number % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if (round_number // len(names)) % 2 else order


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished everything that was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    callables: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    device: torch.device,
    max_seconds: float = float("inf"),
    times: dict[str, list[float]] | None = None,
    clock: Callable[[], float] | None = None,
    deadline: float = float("inf"),
) -> dict[str, list[float]]:
    """Time callables in rounds; each round runs every callable once. The caller chooses the gradient mode.

    Args:
        callables: what to time, by name.
        repeats: number of rounds that are counted. Within a round, callables run in the order of `balanced_order`.
        warmup: number of rounds that run first and are not counted.
        device: the device that the callables run on.
        max_seconds: once 3 rounds have been counted, no round starts after this time. Warm-up does not count.
        times: an empty dict to fill round by round. After an interrupt it holds whole rounds only.
        clock: what times the callables; `max_seconds` are those of the wall. If None, the wall's as well.
        deadline: time of `time.perf_counter` after which no further round starts, once one has been counted.

    Returns:
        Milliseconds by name: (repeats,) each; entry i of all lists is from the same round.
    """
    times = {} if times is None else times
    clock = clock or time.perf_counter
    begin = time.perf_counter()
    for repeat in tqdm(range(-warmup, repeats), desc="rounds", leave=False, disable=None):
        if repeat == 0:
            begin = time.perf_counter()
        now = time.perf_counter()
        if (repeat >= MIN_ROUNDS and now - begin > max_seconds) or (repeat >= 1 and now > deadline):
            break
        if -warmup < repeat < 0 and now > deadline:
            continue
        elapsed = {}
        for name in balanced_order(list(callables), repeat):
            synchronize(device)
            start = clock()
            callables[name]()
            synchronize(device)
            elapsed[name] = (clock() - start) * 1e3
        if repeat >= 0:
            # New lists in a single update, so that an interrupt finds a round in all lists or in none.
            times.update({name: [*times.get(name, []), elapsed[name]] for name in callables})
    return times


def quartiles(values: list[float] | np.ndarray) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def summarize(times: Mapping[str, list[float]], baselines: Mapping[str, str]) -> dict[str, dict]:
    """Quartiles of the times that `measure` returns, and of their ratios to a baseline's time in the same round.

    Args:
        times: milliseconds by name.
        baselines: for each name, the name that it is compared with.
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
