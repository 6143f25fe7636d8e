"""The hourglass: its grids, what a fresh one computes, its formula, and where its arguments are refused."""

import pytest
import torch

from sit_atconv import SiTTransformer2DModel
from sit_atconv.models.costs import closed_form_macs, preset_config
from sit_atconv.models.hourglass import coarse_grid, join_tiles, part_tiles
from sit_atconv.models.presets import PRESETS, preset_name

HOURGLASS = dict(num_layers=5, middle_layers=1, middle_attention_heads=3)


def inputs(height: int = 8, width: int = 8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, height, width, generator=generator), torch.tensor([0.2, 0.7]), torch.tensor([0, 3])


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (3, 4), (4, 5), (5, 7), (1, 1)])
def test_tiles_are_joined_and_parted(grid):
    tokens = torch.randn(2, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0))
    tiles = join_tiles(tokens, grid)
    H, W = coarse_grid(grid)
    assert tiles.shape == (2, H * W, 12)
    assert torch.equal(part_tiles(tiles, grid), tokens)
    image = tokens.unflatten(1, grid)
    for i in range(H):
        for j in range(W):  # places beyond the grid hold the tokens of its last row and column
            rows, columns = [2 * i, min(2 * i + 1, grid[0] - 1)], [2 * j, min(2 * j + 1, grid[1] - 1)]
            expected = torch.cat([image[:, y, x] for y in rows for x in columns], dim=1)
            assert torch.equal(tiles[:, i * W + j], expected)


def test_a_fresh_one_is_the_model_without_its_middle(assert_close):
    """Zero initialisation: the middle and the long skips have no effect yet, whatever the other weights are."""
    torch.manual_seed(0)
    arguments = dict(sample_size=8, in_channels=3, num_attention_heads=2, attention_head_dim=8, num_classes=5)
    model = SiTTransformer2DModel(**arguments, **HOURGLASS).eval()
    for name, parameter in model.named_parameters():
        if "modulation" in name or "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    plain = SiTTransformer2DModel(**arguments, num_layers=4).eval()
    weights = model.state_dict()
    state = {name: weight for name, weight in weights.items() if not name.startswith(("hourglass", "blocks"))}
    for i, prefix in enumerate(("blocks.0.", "blocks.1.", "blocks.3.", "blocks.4.")):
        block = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
        state |= {name.replace(prefix, f"blocks.{i}."): weight for name, weight in block.items()}
    plain.load_state_dict(state)
    assert_close(model(*inputs()).sample, plain(*inputs()).sample, 1e-6)


@pytest.mark.parametrize("size", [(8, 12), (6, 10)])
@pytest.mark.parametrize("mixer", ["atconv", ["atconv", "atconv", "attention", "atconv", "atconv"]])
def test_the_blocks_and_what_connects_them(mixer, size, tiny_transformer, assert_close):
    """One block after the other, with the tokens of each level written out."""
    model = tiny_transformer(mixer=mixer, **HOURGLASS)
    taken = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: taken.append(args))
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    model(*inputs(*size))
    grid = (size[0] // 2, size[1] // 2)
    parts = model.hourglass
    assert [args[2] for args in taken] == [grid, grid, coarse_grid(grid), grid, grid]
    assert torch.equal(taken[1][0], outputs[0])
    assert_close(taken[2][0], parts.merge(join_tiles(outputs[1], grid)), 1e-6)
    joined = outputs[1] + part_tiles(parts.split(outputs[2]), grid)
    assert_close(taken[3][0], joined + parts.skips[0](outputs[1]), 1e-6)
    assert_close(taken[4][0], outputs[3] + parts.skips[1](outputs[0]), 1e-6)


def test_modulations_checkpointing_and_gradients(tiny_transformer, assert_close):
    model = tiny_transformer(**HOURGLASS)
    x, t, labels = inputs(6, 8)
    ahead = model.modulations(t, labels)
    assert ahead.shape == (2, 2, 6 * 16 * 4 + 6 * 24 + 2 * 16)
    assert_close(model(x, None, None, modulation=ahead[0]).sample, model(x, t[0], labels).sample, 1e-5)
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(x, t, labels, class_dropout=torch.tensor([False, True])).sample.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any(), f"no gradient for {name}"
        assert_close(gradients[1][name], gradient, 1e-5)


@pytest.mark.slow
def test_it_compiles_without_graph_breaks(tiny_transformer, assert_close):
    model = tiny_transformer(mixer=["atconv", "atconv", "attention", "atconv", "atconv"], **HOURGLASS)
    for size in ((8, 8), (6, 10)):
        expected = model(*inputs(*size)).sample
        torch.compiler.reset()
        whole = torch.compile(model, backend="aot_eager", fullgraph=True)
        output = whole(*inputs(*size)).sample
        assert_close(output, expected, 1e-5)
        output.sum().backward()
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert_close(model(*inputs(6, 10)).sample, expected, 1e-5)


@pytest.mark.parametrize("name", [name for name in PRESETS if "-U-" in name])
def test_presets_cost_less_than_those_of_one_resolution(name):
    assert preset_name(preset_config(name)) == name
    ours, hybrid = preset_config(name), name.endswith("-Hybrid")
    plain = preset_config(name.replace("-U-", "-").removesuffix("-Hybrid"))
    for side in (32, 64):
        macs = closed_form_macs(ours, side, side)
        if not hybrid or (side // ours["patch_size"]) ** 2 <= 256:
            assert macs < closed_form_macs(plain, side, side)
        assert not hybrid or macs < closed_form_macs(preset_config(name.replace("-U-", "-")), side, side)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_layers=6, middle_layers=3), "middle_layers=3 of num_layers=6 must leave as many .* choose 2"),
        (dict(num_layers=5, middle_layers=5), "middle_layers=5 of num_layers=5 .* choose 1"),
        (dict(num_layers=2, middle_layers=1), "raise num_layers to 3 or more"),
        (dict(num_layers=5, middle_layers=-1), "middle_layers=-1"),
        (dict(num_layers=5, middle_attention_heads=3), "middle_attention_heads=3 is for an hourglass"),
        (dict(num_layers=3, middle_layers=1, middle_attention_heads=0), "middle_attention_heads=0"),
        (dict(num_layers=3, middle_layers=1, middle_attention_heads=10**6), "middle_attention_heads=1000000"),
        (
            dict(num_layers=3, middle_layers=1, middle_attention_heads=3, kernel_groups=16),
            "kernel_groups=16 must divide the 24 channels",
        ),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, tiny_transformer):
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**arguments)
