"""The presets: published parameter counts, the mixers of every block, and names that are refused."""

import pytest
import torch

from sit_atconv import ATConv, SiTTransformer2DModel
from sit_atconv.models.attention import PooledAttention, SelfAttention
from sit_atconv.models.presets import PRESETS, mixer_per_block


def mixers_of(model) -> list[str]:
    names = {ATConv: "atconv", SelfAttention: "attention", PooledAttention: "pooled_attention"}
    return [names[type(block.mixer)] for block in model.blocks]


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("SiT-XL/2", 675.13),
        ("SiT-ATConv-XL/2", 637.68),
        ("SiT-ATConv-XL/2-Hybrid", 656.55),
        ("SiT-L/2", 458.10),
        ("SiT-ATConv-L/2", 432.68),
        ("SiT-B/2", 130.51),
        ("SiT-ATConv-B/2", 123.24),
        ("SiT-S/2", 32.96),
        ("SiT-ATConv-S/2", 31.10),
    ],
)
def test_published_parameter_counts(preset, millions):
    """Published models have twice the output channels, and count their fixed N·D position table, if they have one."""
    with torch.device("meta"):
        model = SiTTransformer2DModel.from_preset(preset, out_channels=8)
    count = sum(parameter.numel() for parameter in model.parameters())
    if model.position_embedding == "sincos":
        count += (32 // 2) ** 2 * model.proj_out.in_features
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_mixers_of_every_preset(preset):
    """A preset that says ATConv contains it: in every block, in every other one of a hybrid, or around its middle."""
    with torch.device("meta"):
        model = SiTTransformer2DModel.from_preset(preset)
    depth = {"Nano": 6, "S": 12, "B": 12, "L": 24, "XL": 28}[preset.split("/")[0].split("-")[-1]]
    if "-U-" in preset:
        middle = "attention" if preset.endswith("-Hybrid") else "atconv"
        outer = ["atconv"] * ((depth - model.config.middle_layers) // 2)
        expected = outer + [middle] * model.config.middle_layers + outer
    elif preset.endswith("-Hybrid"):
        expected = ["attention", "atconv"] * (depth // 2)
    elif preset.endswith("-Pooled"):
        expected = (["atconv", "pooled_attention", "atconv"] * depth)[:depth]
    else:
        expected = ["atconv" if "ATConv" in preset else "attention"] * depth
    assert mixers_of(model) == expected
    assert model.config.patch_size == int(preset.split("/")[1][0])
    assert model.config.num_classes == 1000


def test_presets_of_every_family_and_size():
    published = {
        f"{family}-{size}/{patch_size}{suffix}"
        for family, suffix in (
            ("SiT", ""),
            ("SiT-ATConv", ""),
            ("SiT-ATConv", "-Hybrid"),
            ("SiT-ATConv", "-Pooled"),
            ("SiT-ATConv-U", ""),
            ("SiT-ATConv-U", "-Hybrid"),
        )
        for size in ("S", "B", "L", "XL")
        for patch_size in (2, 4, 8)
    }
    assert published <= set(PRESETS)


def test_preset_arguments_can_be_overridden():
    model = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2", num_layers=2, mixer="attention", num_classes=7)
    assert mixers_of(model) == ["attention"] * 2
    assert model.config.num_classes == 7


def test_mixer_list_is_taken_block_by_block(tiny_transformer):
    mixers = ["atconv", "attention", "attention", "atconv"]
    assert mixers_of(tiny_transformer(num_layers=4, mixer=mixers)) == mixers
    assert mixers_of(tiny_transformer(num_layers=3, mixer="hybrid")) == ["attention", "atconv", "attention"]
    assert mixer_per_block(mixers, 4) == mixers


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset='SiT-XXL/2'"):
        SiTTransformer2DModel.from_preset("SiT-XXL/2")
