"""Peak memory and shares of the time by operation; nothing here depends on real time."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from sit_atconv.benchmarks.profiling import peak_memory, shares_of_events, time_by_operation

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("count", [0, 1, 50])
def test_time_is_told_by_operation(count):
    """Which operation takes longest depends on the machine; that both are found does not."""
    a = torch.randn(64, 64)
    shares = time_by_operation(lambda: (a @ a).sigmoid(), CPU, count)
    assert sum(shares.values()) == pytest.approx(1)
    *named, last = shares
    assert last == "other" and len(named) <= count
    if count == 50:
        assert {"aten::mm", "aten::sigmoid"} <= set(named)
        assert shares["other"] == pytest.approx(0)
    else:
        assert len(named) == count


def test_the_largest_shares_come_first():
    spent = {"copy": 1, "mm": 6, "add": 2, "mul": 1}
    events = [
        SimpleNamespace(key=key, device_type=DeviceType.CPU, is_user_annotation=False, self_cpu_time_total=time)
        for key, time in spent.items()
    ]
    shares = shares_of_events(events, CPU, count=2)
    assert list(shares) == ["mm", "add", "other"]
    assert list(shares.values()) == pytest.approx([0.6, 0.2, 0.2])


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
