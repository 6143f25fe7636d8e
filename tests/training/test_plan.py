import pytest
import torch

from sit_atconv.data import DigitsDataset
from sit_atconv.models.macs import count_macs
from sit_atconv.training.build import build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.plan import activation_bytes, describe_plan


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
