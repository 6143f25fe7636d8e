"""What is timed in which order, what is counted, how memory and rooflines are found. Nothing depends on real time."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from sit_atconv.benchmarks import timing as benchmarking
from sit_atconv.benchmarks.timing import (
    measure,
    peak_memory,
    roofline_ms,
    shares_of_events,
    summarize,
    time_by_operation,
    turns,
)

CPU = torch.device("cpu")


@pytest.fixture
def recorded(monkeypatch):
    """(callables, log) on a clock that only the callables move; each writes its name into the log."""
    log, clock = [], [0.0]
    monkeypatch.setattr(benchmarking.time, "perf_counter", lambda: clock[0])

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


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_turns_are_balanced(n):
    names = [chr(ord("a") + i) for i in range(n)]
    orders = [turns(names, repeat) for repeat in range(2 * n)]
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
    monkeypatch.setattr(benchmarking.torch.cuda, "synchronize", lambda device: log.append("wait"))
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


def test_peak_memory_is_the_most_that_is_held_at_once(capfd):
    def call():
        a = torch.empty(1000)
        b = torch.empty(5000)
        del a
        return torch.empty(3000), b

    assert peak_memory(call, CPU) == 4 * (5000 + 3000)
    assert peak_memory(lambda: None, CPU) == 0
    assert capfd.readouterr().err == ""


def test_peak_memory_of_training_holds_every_gradient():
    model = torch.nn.Linear(64, 128, bias=False)
    x = torch.randn(2, 64)
    peak = peak_memory(lambda: model(x).sum().backward(), CPU)
    assert 4 * 64 * 128 <= peak <= 4 * 64 * 128 + 4 * 2 * 128 * 4


def test_checkpointing_saves_memory(tiny_transformer):
    model = tiny_transformer(num_layers=6)
    x, t, y = torch.randn(4, 3, 32, 32), torch.rand(4), torch.zeros(4, dtype=torch.long)

    def step():
        model.zero_grad(set_to_none=True)
        model(x, t, y).sample.square().mean().backward()

    plain = peak_memory(step, CPU)
    model.enable_gradient_checkpointing()
    model.zero_grad(set_to_none=True)
    assert peak_memory(step, CPU) < plain / 2


def test_time_is_told_by_operation():
    a = torch.randn(600, 600)
    shares = time_by_operation(lambda: (a @ a).sigmoid(), CPU, count=2)
    assert next(iter(shares)) == "aten::mm"
    assert list(shares)[-1] == "other" and len(shares) == 3
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(("device", "expected"), [("cuda", {"gemm": 0.75, "other": 0.25}), ("cpu", {"aten::mm": 1.0})])
def test_shares_are_of_what_ran_on_the_device(device, expected):
    """An operation bears its kernel's time, too, and a mark all that is within."""

    def event(key, kind, on_cpu, on_gpu, mark=False):
        times = dict(self_cpu_time_total=on_cpu, self_device_time_total=on_gpu)
        return SimpleNamespace(key=key, device_type=kind, is_user_annotation=mark, **times)

    events = [
        event("aten::mm", DeviceType.CPU, 5, 3),
        event("gemm", DeviceType.CUDA, 0, 3),
        event("copy", DeviceType.CUDA, 0, 1),
        event("Torch-Compiled Region", DeviceType.CPU, 9, 0, True),
        event("Torch-Compiled Region", DeviceType.CUDA, 0, 4, True),
    ]
    shares = shares_of_events(events, torch.device(device), count=1)
    assert {name: share for name, share in shares.items() if share} == expected


def test_roofline_in_closed_form():
    """One operation bound by arithmetic (2 s), one by memory (3 s)."""
    assert roofline_ms([(200, 1), (1, 30)], flops_per_second=100, bytes_per_second=10) == pytest.approx(5000)
