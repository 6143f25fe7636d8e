"""The regression of new mixers on old ones: what is compared, and what is trained."""

import copy
from contextlib import nullcontext

import pytest
import torch

from sit_atconv import SiTTransformer2DModel
from sit_atconv.flow.interpolants import Interpolant
from sit_atconv.flow.losses import InterpolantLoss
from sit_atconv.models.grafting import graft
from sit_atconv.training.mixer_regression import CallableMixers, MixerRegression, StagedObjective, recorded_mixers

BLOCKS = [0, 2]


@pytest.fixture
def source():
    """A model of attention whose weights are all random."""
    options = dict(sample_size=8, patch_size=2, in_channels=1, num_attention_heads=2, attention_head_dim=8)
    model = SiTTransformer2DModel(**options, num_layers=3, num_classes=3, mixer="attention")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False).train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(4, 1, 8, 8, generator=generator),
        "noise": torch.randn(4, 1, 8, 8, generator=generator),
        "time": torch.randn(4, generator=generator),
        "label": torch.tensor([0, 1, 2, 0]),
        "dropout": torch.tensor([0.0, 1.0, 1.0, 1.0]),
        "position": torch.arange(4),
    }


def regression(source, student):
    loss_fn = InterpolantLoss(Interpolant())
    return MixerRegression(loss_fn, CallableMixers(student), 0.1, None, source, BLOCKS, nullcontext)


def test_what_a_mixer_says_is_what_its_block_adds(source, batch):
    """The recorded input, output and gate give the first half of the block, which is x + gate·mixer(…)."""
    block, inputs = source.blocks[2], []
    handles = [block.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))]
    handles.append(block.norm2.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0])))
    with torch.no_grad(), recorded_mixers(source, BLOCKS) as calls:
        source(batch["x"], torch.full((4,), 0.3), batch["label"], class_dropout=batch["dropout"] < 0.1)
    assert list(calls) == BLOCKS
    before, between = inputs
    torch.testing.assert_close(before + calls[2].gate * calls[2].output, between)
    torch.testing.assert_close(block.mixer(calls[2].tokens, calls[2].grid), calls[2].output)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in source.modules())


def test_shares_of_the_same_of_no_and_of_twice_the_output(source, batch):
    same, none, twice = (copy.deepcopy(source) for _ in range(3))
    for model, factor in ((none, 0.0), (twice, 2.0)):
        for i in BLOCKS:
            model.blocks[i].mixer.out_proj.weight.data *= factor
            model.blocks[i].mixer.out_proj.bias.data *= factor
    for model, share in ((same, 0.0), (none, 1.0), (twice, 1.0)):
        shares, _ = regression(source, model).shares(batch)
        torch.testing.assert_close(shares, torch.full((4, 2), share))


def test_only_the_new_mixers_get_a_gradient(source, batch):
    """All others get zeros, with which AdamW leaves them as they are, bit by bit."""
    student = graft(source, ["atconv", "attention", "atconv"])
    before = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    regression(source, student).losses(batch).diffusion.mean().backward()
    optimizer.step()
    for name, parameter in student.named_parameters():
        is_new = name.startswith(("blocks.0.mixer.", "blocks.2.mixer."))
        assert parameter.grad is not None and bool(parameter.grad.any()) == is_new, name
        assert torch.equal(parameter, before[name]) != is_new, name


def test_regression_learns(source, batch):
    student = graft(source, ["atconv", "attention", "atconv"], init="fresh")
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = regression(source, student).losses(batch).diffusion.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_stage_follows_from_the_position():
    class Named:
        def __init__(self, name):
            self.name = name

        def losses(self, batch):
            return self.name

    staged = StagedObjective(Named("first"), Named("then"), samples=64)
    assert staged.losses({"position": torch.arange(32, 64)}) == "first"
    assert staged.losses({"position": torch.arange(64, 96)}) == "then"
