"""Conditioning that is computed ahead of a solve: the same outputs, and fewer computations."""

import pytest
import torch
from torch import nn

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.flow import conditioning
from sit_atconv.flow.conditioning import LabelledModel, evaluating, time_key
from sit_atconv.flow.guidance import Guidance, GuidedModel

LABELS = torch.tensor([0, 4, 2])


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("autoguided", [False, True])
def test_prepared_times_cost_no_conditioning(autoguided, scale, tiny_transformer, x):
    """The same outputs, with the layers of the conditioning run once for all times instead of once a call."""
    transformer, weaker = tiny_transformer().requires_grad_(False), None
    if autoguided:
        weaker = tiny_transformer(seed=1, num_layers=1).requires_grad_(False)
    options = Guidance(scale, (0.2, 1.0), model=weaker)
    expected, model = GuidedModel(transformer, LABELS, options), GuidedModel(transformer, LABELS, options)
    calls = []
    transformer.blocks[0].modulation.register_forward_hook(lambda *_: calls.append("modulation"))
    transformer.register_forward_hook(lambda *_: calls.append("forward"))
    model.prepare([0.1, 0.5, 0.5, 0.7])
    for t in (0.1, 0.5, 0.7):
        output = model(x, torch.tensor(t))
        assert calls == ["modulation", *["forward"] * (len(calls) - 1)]
        calls_before = len(calls)
        torch.testing.assert_close(output, expected(x, torch.tensor(t)), rtol=1e-4, atol=1e-5)
        del calls[calls_before:]
    for t in (torch.tensor(0.3), torch.tensor([0.1, 0.5, 0.7])):  # times that nobody announced, and times of each row
        torch.testing.assert_close(model(x, t), expected(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reason", ["memory", "hook"])
def test_conditioning_is_not_prepared_where_it_cannot_be(reason, tiny_transformer, x, monkeypatch):
    transformer = tiny_transformer().requires_grad_(False)
    if reason == "memory":
        monkeypatch.setattr(conditioning, "MODULATION_BYTES", 100)
    else:  # as those that bring the weights to where they are needed
        transformer.register_forward_pre_hook(lambda *_: None)
    calls = []
    transformer.blocks[0].modulation.register_forward_hook(lambda *_: calls.append(1))
    model = GuidedModel(transformer, LABELS, Guidance(2.0))
    model.prepare([0.1, 0.5])
    assert not calls
    model(x, torch.tensor(0.5))
    assert calls == [1]


@pytest.mark.parametrize(
    "scheduler",
    [
        *(InterpolantODEScheduler(solver=solver) for solver in ("euler", "midpoint", "rk4")),
        InterpolantSDEScheduler(),
        InterpolantSDEScheduler(solver="heun"),
    ],
)
def test_sampling_never_waits_for_the_device(scheduler, tiny_transformer):
    """On the meta device, reading a value is an error: a fixed-step solve decides everything on the host."""
    transformer = tiny_transformer().requires_grad_(False)
    model = GuidedModel(transformer, LABELS, Guidance(2.0, (0.2, 0.8), channels=2))
    model.prepare(scheduler.network_times(4)[:3])
    transformer.to("meta")
    model.model.labels = model.model.labels.to("meta")
    model.model.index, model.model.modulations = model.model.index.to("meta"), model.model.modulations.to("meta")
    x = torch.empty(3, 3, 8, 8, device="meta")
    scheduler._noise = lambda x, *_: torch.empty_like(x)  # there are no random numbers on the meta device
    assert scheduler.solve(model, x, 4).shape == x.shape


def test_a_time_is_known_by_its_float32_value():
    t = 1 / 3
    assert time_key(t) == time_key(torch.tensor(t)) == time_key(torch.tensor(t, dtype=torch.float64)) != t
    assert time_key(0.25) == 0.25
    assert time_key(t) != time_key(t + 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_announced_times_are_found_in_the_dtype_of_the_state(dtype, tiny_transformer, x):
    transformer = tiny_transformer().requires_grad_(False)
    model = LabelledModel(transformer, LABELS)
    model.prepare([0.1, 1 / 3])
    calls = []
    transformer.blocks[0].modulation.register_forward_hook(lambda *_: calls.append(1))
    for t in (0.1, 1 / 3):
        model(x.to(dtype), torch.tensor(t, dtype=dtype), slice(None))
    assert not calls
    model(x.to(dtype), torch.tensor(0.2, dtype=dtype), slice(None))
    assert calls == [1]


@pytest.mark.parametrize("prepared", [[], [0.2, 0.6]])
def test_output_outlives_the_next_call(prepared, tiny_transformer, x):
    """Solvers keep velocities, while a network that runs as a CUDA graph writes each output to the same place."""
    transformer = tiny_transformer().requires_grad_(False)
    buffer = torch.zeros_like(x)
    transformer.register_forward_hook(lambda module, inputs, output: (buffer.copy_(output[0]),))
    model = LabelledModel(transformer, LABELS)
    model.prepare(prepared)
    first = model(x, torch.tensor(0.2), slice(None))
    kept = first.clone()
    assert not torch.equal(model(x, torch.tensor(0.6), slice(None)), kept)
    assert torch.equal(first, kept)


def test_evaluating_by_several_at_once():
    """The first to leave changes nothing, and the modes from before come back with the last."""
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval()).train(True)
    model[1].eval()
    first, second = evaluating(model), evaluating(model[0], model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == [True, True, False]


def test_evaluating_puts_each_module_back_into_its_mode():
    training, evaluated = nn.Dropout().train(), nn.Dropout().eval()
    with pytest.raises(KeyError), evaluating(training, None, evaluated):
        assert not training.training
        assert not evaluated.training
        raise KeyError
    assert training.training
    assert not evaluated.training
