"""Grafts: what is copied, what they compute, and what cannot be grafted."""

import pytest
import torch

from sit_atconv import SiTTransformer2DModel
from sit_atconv.models.grafting import graft
from sit_atconv.models.presets import replaced_blocks

SMALL = dict(sample_size=8, patch_size=2, in_channels=1, num_layers=4, num_attention_heads=2, attention_head_dim=8)


def trained_model(**options):
    """A model of attention whose weights are all random, as after a training."""
    model = SiTTransformer2DModel(**{**SMALL, "num_classes": 3, "mixer": "attention", **options})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def predict(model):
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 1, 8, 8, generator=generator), torch.rand(2, generator=generator)
    with torch.no_grad():
        return model.eval()(x, t, torch.tensor([0, 2])).sample


def test_everything_but_the_replaced_mixers_is_copied():
    trained = trained_model(qk_norm=True)
    grafted = graft(trained, ["attention", "atconv", "atconv", "attention"], kernel_pool="grid")
    assert grafted.config.kernel_pool == "grid" and trained.config.mixer == "attention"
    old, new = trained.state_dict(), grafted.state_dict()
    replaced = ("blocks.1.mixer.", "blocks.2.mixer.")
    for name in old.keys() | new.keys():
        if not name.startswith(replaced):
            assert torch.equal(new[name], old[name]), name


def test_a_block_that_does_not_mix_is_the_same_after_the_graft():
    """With a kernel that passes each token on, ATConv is attention of each token to itself: out(v(x)) in both."""
    trained, self_alone = trained_model(), torch.eye(16, dtype=torch.bool)
    grafted = graft(trained, "atconv")
    assert grafted.position_embedding == "sincos"
    attention = torch.nn.functional.scaled_dot_product_attention
    for block in grafted.blocks:
        mixer = block.mixer
        for parameter in (mixer.kernel_gen.weight, mixer.kernel_gen.bias):
            torch.nn.init.zeros_(parameter)
        mixer.kernel_gen.bias.data[4] = 1.0  # the middle of 3×3
        torch.nn.init.constant_(mixer.inhibition, -100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda **options: attention(**{**options, "attn_mask": self_alone}),
        )
        expected = predict(trained)
    torch.testing.assert_close(predict(grafted), expected, rtol=1e-4, atol=1e-5)


def test_an_average_branch_starts_as_attention_of_equal_weights():
    trained = trained_model()
    for block in trained.blocks:
        for parameter in (block.mixer.qkv.weight, block.mixer.qkv.bias):
            torch.nn.init.zeros_(parameter[:32])  # queries and keys: every token attends to all alike
    grafted = graft(trained, "atconv", average_branch=True)
    assert torch.equal(graft(trained, "atconv", "fresh", average_branch=True).blocks[0].mixer.average, torch.zeros(16))
    for block in grafted.blocks:
        for parameter in (block.mixer.kernel_gen.weight, block.mixer.kernel_gen.bias):
            torch.nn.init.zeros_(parameter)  # a convolution that passes nothing on
    torch.testing.assert_close(predict(grafted), predict(trained), rtol=1e-4, atol=1e-5)


def test_pooled_attention_computes_the_same_on_its_own_grid():
    trained = trained_model(qk_norm=True)
    grafted = graft(trained, "pooled_attention", attention_pool=4)
    torch.testing.assert_close(predict(grafted), predict(trained), rtol=1e-4, atol=1e-5)
    assert replaced_blocks(trained.config, "pooled_hybrid") == [0, 1, 2, 3]  # ATConv in 0, 2 and 3
    mixed = graft(trained, "pooled_hybrid")
    assert torch.equal(mixed.blocks[1].mixer.q_norm.weight, trained.blocks[1].mixer.q_norm.weight)
    with pytest.raises(ValueError, match="block 1 of the trained model has pooled_attention already"):
        replaced_blocks(graft(trained, ["attention", "pooled_attention"] * 2).config, "atconv")


def test_fresh_grafts_take_no_values():
    trained = trained_model()
    torch.manual_seed(0)
    fresh, values = graft(trained, "hybrid", init="fresh"), graft(trained, "hybrid")
    attention = trained.blocks[1].mixer
    assert torch.equal(values.blocks[1].mixer.value_proj.bias, attention.qkv.bias[32:])
    assert torch.equal(fresh.blocks[1].mixer.value_proj.bias, torch.zeros(16))
    assert not torch.isclose(fresh.blocks[1].mixer.out_proj.weight, attention.out_proj.weight).any()


def test_an_hourglass_is_grafted_at_both_levels():
    trained = trained_model(num_layers=3, middle_layers=1, middle_attention_heads=3)
    grafted = graft(trained, "atconv", average_branch=True)
    assert [block.mixer.average.tolist() for block in grafted.blocks] == [[1.0] * 16, [1.0] * 24, [1.0] * 16]
    for name, weight in trained.hourglass.state_dict().items():
        assert torch.equal(grafted.hourglass.state_dict()[name], weight), name


def test_grafts_of_grafts():
    hybrid = graft(trained_model(), "hybrid")
    assert replaced_blocks(hybrid.config, "atconv") == [0, 2]
    grafted = graft(hybrid, "atconv")
    assert torch.equal(grafted.blocks[1].mixer.kernel_gen.weight, hybrid.blocks[1].mixer.kernel_gen.weight)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("atconv", "hybrid", "no self-attention to replace; leave mixer out"),
        ("hybrid", ["attention", "atconv"] * 2, "has already; leave mixer out"),
        ("hybrid", ["atconv", "attention"] * 2, "block 1 of the trained model has atconv already"),
        ("attention", ["atconv"] * 3, "mixer lists 3 blocks, but num_layers=4"),
        ("attention", "mamba", "mixer='mamba' is not one of"),
    ],
)
def test_what_cannot_be_grafted(before, after, message):
    with pytest.raises(ValueError, match=message):
        replaced_blocks({**SMALL, "mixer": before}, after)
