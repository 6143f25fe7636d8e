"""The calls that are timed: their values, gradients, number of network calls, and what is compiled."""

import pytest
import torch

from sit_atconv.benchmarks.calls import build_models, make_calls, make_inputs, train_step
from sit_atconv.benchmarks.settings import LatencyOptions, Setting
from sit_atconv.models.transformer_sit import SiTTransformer2DModel

CPU = torch.device("cpu")
NANO = ["SiT-Nano/2", "SiT-ATConv-Nano/2"]
FORWARD = Setting("forward", tuple(NANO), 64, 2, "float32")


def test_models_compute_with_real_values():
    models = build_models(NANO, torch.float32, CPU)
    for name, model in models.items():
        assert not model.training
        for parameter_name, parameter in model.named_parameters():
            assert (parameter != 0).any(), f"{name}: {parameter_name} is zero"
        inputs = make_inputs(model, FORWARD, CPU)
        assert inputs[0].shape == (2, 4, 8, 8)
        with torch.inference_mode():
            sample = model(*inputs).sample
        assert sample.isfinite().all()
        assert (sample.abs() > torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_leaves_the_gradients_of_the_mean_square(checkpointing, assert_close):
    model = build_models(NANO[1:], torch.float32, CPU)[NANO[1]]
    model.enable_gradient_checkpointing()
    inputs = make_inputs(model, FORWARD, CPU)
    for _ in range(2):  # anew each time
        train_step(model, inputs, torch.float32, checkpointing)
    actual = model.proj_out.weight.grad.clone()
    (expected,) = torch.autograd.grad(model(*inputs).sample.square().mean(), model.proj_out.weight)
    assert_close(actual, expected, 1e-5)
    assert model.gradient_checkpointing is False


def test_the_sde_takes_one_call_a_step_and_its_baseline_two():
    models = build_models(NANO[1:], torch.float32, CPU)
    calls = []
    models[NANO[1]].register_forward_hook(lambda *_: calls.append(1))
    options = LatencyOptions(device="cpu", sde_steps=4)
    setting = Setting("sde", tuple(NANO[1:]), 64, 1, "float32")
    counts = {}
    with torch.inference_mode():
        for name, call in make_calls(models, setting, options, CPU)[0].items():
            calls.clear()
            call()
            counts[name] = len(calls)
    assert counts == {f"{NANO[1]}, 2 calls a step": 8, NANO[1]: 4}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("none", []), ("whole", ["model"] * 2 + ["mixer"] * 2), ("blocks", ["blocks"] * 2 + ["mixer"] * 2)],
)
def test_what_is_compiled(choice, expected, monkeypatch):
    seen, modes = [], set()

    def fake_compile(module, dynamic, fullgraph, mode):
        assert (dynamic, fullgraph) == (False, True)
        seen.append("model" if isinstance(module, SiTTransformer2DModel) else "mixer")
        modes.add(mode)
        return module

    def compile_blocks(self, fullgraph, mode):
        seen.append("blocks")
        modes.add(mode)

    monkeypatch.setattr(torch, "compile", fake_compile)
    monkeypatch.setattr(SiTTransformer2DModel, "compile_repeated_blocks", compile_blocks)
    models = build_models(NANO, torch.float32, CPU)
    options = LatencyOptions(device="cpu", compile=choice)
    for measurement in ("forward", "operator"):
        make_calls(models, Setting(measurement, tuple(NANO), 64, 1, "float32"), options, CPU)
    assert seen == expected and modes <= {None}
    make_calls(models, Setting("forward", tuple(NANO), 64, 1, "float32", cuda_graphs=True), options, CPU)
    assert modes == ({None, "reduce-overhead"} if expected else set())


def test_blocks_with_cuda_graphs_are_one_step_together(monkeypatch):
    """By themselves, CUDA graphs would take every block for a new iteration, and free what the one before returned."""
    begun: list[int] = []
    monkeypatch.setattr(SiTTransformer2DModel, "compile_repeated_blocks", lambda self, fullgraph, mode: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    models = build_models(NANO[:1], torch.float32, CPU)
    for graphs in (False, True):
        setting = Setting("forward", tuple(NANO[:1]), 64, 1, "float32", cuda_graphs=graphs)
        calls, _ = make_calls(models, setting, LatencyOptions(device="cpu", compile="blocks"), CPU)
        for call in (*calls.values(), *calls.values()):
            call()
        assert len(begun) == (2 if graphs else 0)


def test_mean_flow_steps_and_the_spans_that_they_differentiate(monkeypatch):
    differentiated = []

    def fake_jvp(function, primals, tangents):
        differentiated.append(len(primals[1]))
        return function(*primals), tangents[0]

    monkeypatch.setattr("sit_atconv.flow.mean_flow.torch.func.jvp", fake_jvp)
    setting = Setting("meanflow", tuple(NANO[1:]), 64, 4, "float32")
    models = build_models(NANO[1:], torch.float32, CPU, setting.step_conditioning)
    calls, baselines = make_calls(models, setting, LatencyOptions(device="cpu"), CPU)
    gradients = []
    for call in calls.values():
        call()
        gradients.append(models[NANO[1]].proj_out.weight.grad.clone())
    assert differentiated == [1, 4]
    assert set(baselines.values()) == {NANO[1]} and len(calls) == 3
    assert not torch.equal(gradients[0], gradients[1])  # the targets differ
    one = make_calls(models, Setting("meanflow", tuple(NANO[1:]), 64, 1, "float32"), LatencyOptions(device="cpu"), CPU)
    assert len(one.calls) == 2  # a quarter of one sample is none
