"""The order of timed calls, what is counted, and ratios within rounds; the clock is the tests' own."""

import itertools
from collections import Counter

import pytest
import torch

from sit_atconv.benchmarks import timing
from sit_atconv.benchmarks.timing import balanced_order, measure, summarize

CPU = torch.device("cpu")


@pytest.fixture
def recorded(monkeypatch):
    """(callables, log) on a clock that only the callables move; each writes its name into the log."""
    log, clock = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def recorder(name: str, seconds: float):
        def call():
            log.append(name)
            clock[0] += seconds

        return call

    return {name: recorder(name, s) for name, s in dict(a=0.5, b=0.25, c=2.0).items()}, log


def test_callables_take_turns(recorded):
    callables, log = recorded
    measure(callables, repeats=6, warmup=2, device=CPU)
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 8
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert rounds[2:] == ["abc", "bca", "cab", "cba", "acb", "bac"]


@pytest.mark.parametrize(("deadline", "rounds"), [(-1.0, 2), (2.0, 2), (7.0, 3), (12.0, 5)])
def test_after_the_deadline_one_round_is_counted(recorded, deadline, rounds):
    """A round takes 2.75 seconds; two are warm-up, of which one always runs."""
    callables, log = recorded
    times = measure(callables, repeats=9, warmup=2, device=CPU, deadline=deadline)
    assert len(log) == 3 * rounds and len(times["a"]) == max(1, rounds - 2)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_turns_are_balanced(n):
    names = [chr(ord("a") + i) for i in range(n)]
    orders = [balanced_order(names, repeat) for repeat in range(2 * n)]
    places = Counter((name, place) for order in orders for place, name in enumerate(order))
    assert set(places.values()) == {2} and len(places) == n * n
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert all(follows[pair] == follows[pair[::-1]] for pair in follows)


def test_measure_leaves_out_warmup_and_counts_milliseconds(recorded):
    callables, log = recorded
    times = measure(callables, repeats=4, warmup=3, device=CPU)
    assert times == {"a": [500.0] * 4, "b": [250.0] * 4, "c": [2000.0] * 4}
    assert len(log) == 3 * (3 + 4)


@pytest.mark.parametrize(("max_seconds", "rounds"), [(0.0, 3), (2.75 * 4.5, 5), (1e9, 9)])
def test_measure_ends_after_its_time(max_seconds, rounds, recorded):
    callables, _ = recorded  # a round takes 2.75 s
    assert len(measure(callables, repeats=9, warmup=1, device=CPU, max_seconds=max_seconds)["a"]) == rounds


def test_an_interrupt_leaves_whole_rounds(recorded):
    callables, log = recorded

    def third():
        if log.count("b") == 3:  # one to warm up, and two rounds
            raise KeyboardInterrupt
        callables["b"]()

    times = {}
    with pytest.raises(KeyboardInterrupt):
        measure({**callables, "b": third}, repeats=6, warmup=1, device=CPU, times=times)
    assert times == {"a": [500.0] * 2, "b": [250.0] * 2, "c": [2000.0] * 2}
    assert log[-2:] == ["c", "a"]  # of the round that was not ended


def test_device_is_synchronised_around_each_call(recorded, monkeypatch):
    callables, log = recorded
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda device: log.append("wait"))
    measure({"a": callables["a"]}, repeats=2, warmup=1, device=torch.device("cuda"))
    assert log == ["wait", "a", "wait"] * 3


def test_ratio_is_taken_within_each_repeat():
    """The machine halves its speed after two of five repeats: the ratio must not see it."""
    times = {"base": [10.0, 10.0, 20.0, 20.0, 20.0], "other": [6.0, 6.0, 10.0, 12.0, 14.0]}
    summary = summarize(times, {"base": "base", "other": "base"})
    assert summary["base"]["ratio"] == [1.0, 1.0, 1.0]
    assert summary["other"]["ratio"] == [0.6, 0.6, 0.6]
    assert summary["other"]["ms"] == [6.0, 10.0, 12.0]
    assert summary["other"]["baseline"] == "base"
