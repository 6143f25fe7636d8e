import re

import pytest
import torch
from accelerate import Accelerator

from sit_atconv.data import DigitsDataset, TrainingView
from sit_atconv.models.macs import count_macs
from sit_atconv.training.build import Components, build_loss, build_objective, build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.optimizer import build_optimizer, muon_matrices
from sit_atconv.training.plan import (
    activation_bytes,
    describe_distillation,
    describe_plan,
    forward_passes,
    state_bytes,
)


@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_activation_bytes_are_those_of_a_real_forward_pass(tiny_transformer, mixer):
    model = tiny_transformer(mixer=mixer, sample_size=16, num_attention_heads=2).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dropout = torch.tensor([False])
        output = model(torch.randn(1, 3, 16, 16), torch.rand(1), torch.tensor([0]), class_dropout=dropout).sample
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert output.requires_grad
    assert activation_bytes(model) == pytest.approx(measured, rel=0.1)


def test_plan_states_the_numbers():
    config = TrainConfig(batch_size=64, gradient_accumulation_steps=2, max_steps=1000)
    transformer = build_transformer(config, DigitsDataset(), None)
    text = describe_plan(config, DigitsDataset(), transformer, None, processes=4, sharded=False, mixed_precision="bf16")
    assert "1,797 images of 10 classes" in text
    assert f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.2f} M parameters" in text
    assert f"{count_macs(transformer, 8, 8) / 1e9:.2g} GMACs" in text
    assert "64 = 4 processes × 2 accumulation steps × 8 images, bf16" in text
    assert f"{64_000 / 1797:.1f} epochs" in text


def test_plan_warns_where_bfloat16_is_emulated(monkeypatch):
    config = TrainConfig()
    transformer = build_transformer(config, DigitsDataset(), None)
    for emulates in (True, False):
        monkeypatch.setattr("sit_atconv.training.plan.emulates_bfloat16", lambda device, emulates=emulates: emulates)
        for precision in ("bf16", "no"):
            arguments = (config, DigitsDataset(), transformer, None, 1, False, precision)
            text = describe_plan(*arguments, device=torch.device("cpu"))
            assert ("--mixed_precision no" in text) == (emulates and precision == "bf16")


def test_planned_bytes_of_the_optimizer_are_those_that_it_keeps():
    kept, planned = [], []
    for optimizer in ("adamw", "muon"):
        config = TrainConfig(optimizer=optimizer)
        transformer = build_transformer(config, DigitsDataset(), None)
        matrices = muon_matrices(transformer.blocks) if optimizer == "muon" else None
        stepped = build_optimizer(config, transformer, matrices)
        for parameter in transformer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        stepped.step()
        states = [moment for state in stepped.state.values() for moment in state.values() if moment.ndim]
        kept.append(sum(moment.nbytes for moment in states))
        parameters = sum(p.numel() for p in transformer.parameters())
        planned.append(state_bytes(config, parameters, 0, sum(p.numel() for p in matrices or ())))
    assert kept[1] < kept[0] and planned[0] - planned[1] == kept[0] - kept[1]


def test_the_plan_of_muon_needs_less_memory():
    gigabytes = []
    for optimizer in ("adamw", "muon"):
        config = TrainConfig(preset="SiT-S/2", optimizer=optimizer)
        with torch.device("meta"):
            transformer = build_transformer(config, DigitsDataset(), None)
        plan = describe_plan(config, DigitsDataset(), transformer, None, 1, False, "no")
        gigabytes.append(float(re.search(r"([\d.]+) for weights, optimizer and averages", plan)[1]))
    matrices = sum(p.numel() for p in muon_matrices(transformer.blocks))
    assert gigabytes[0] - gigabytes[1] == pytest.approx(4 * matrices / 1e9, abs=0.011)


@pytest.mark.parametrize(
    ("options", "passes", "text"),
    [
        (dict(), 3, None),
        (dict(meanflow_share=0.5), 4.5, "MeanFlow, 50% spans, velocities of the data; a step costs 1.50 of a flow's"),
        (dict(meanflow_share=0.5, meanflow_tangent="data"), 4, "a step costs 1.33 of a flow's"),
        (dict(meanflow_share=0.5, teacher="runs/flow"), 5, "velocities of runs/flow; a step costs 1.67"),
        (dict(meanflow_share=0.5, meanflow_guidance_scale=2.0), 6, "guidance of scale 2 built in; a step costs 2.00"),
    ],
)
def test_plan_states_the_objective_and_what_it_costs(options, passes, text):
    config = TrainConfig(objective="meanflow" if options else "flow", max_steps=1000, **options)
    transformer = build_transformer(config, DigitsDataset(), None)
    plan = describe_plan(config, DigitsDataset(), transformer, None, 1, False, "no")
    assert forward_passes(config) == passes
    assert f"{2 * passes * count_macs(transformer, 8, 8) * 64_000 / 1e18:.2g} EFLOP" in plan
    assert ("objective" in plan) == bool(options)
    assert text is None or text in plan


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(meanflow_tangent="data"), dict(), dict(meanflow_guidance_scale=2.0)])
def test_forward_passes_are_those_that_run(options):
    """Counted in rows of the patch embedding, which the derivative computes twice in one call."""
    config = TrainConfig(objective="meanflow", meanflow_share=0.5, meanflow_guidance_warmup_steps=0, **options)
    model = build_transformer(config, DigitsDataset(), None)
    rows = []
    model.patch_embed.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    view = TrainingView(DigitsDataset(), 0, False, (1, 8, 8), steps=True)
    batch = view.collate([view[i, i] for i in range(8)])
    del batch["broken"]
    components = Components(DigitsDataset(), None, model, model, build_loss(config), None)
    build_objective(config, components, model, Accelerator(cpu=True)).losses(batch)
    spans = 4
    assert sum(rows) / 8 + spans / 8 + 2 == forward_passes(config)  # the tangent; the backward pass


@pytest.mark.parametrize(
    ("data", "flow_weight", "warned"), [("teacher:50", 0.5, True), ("teacher:50", 0.0, False), ("digits", 0.5, False)]
)
def test_samples_of_a_teacher_as_data_are_warned_of(data, flow_weight, warned):
    config = TrainConfig(data=data, init_from="FOLDER", teacher="FOLDER", flow_weight=flow_weight)
    assert ("warning" in "\n".join(describe_distillation(config))) == warned
