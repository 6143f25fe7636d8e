"""SiTTransformer2DModel against the reference's numbers, its own variants and what diffusers expects of a model."""

import math
import re

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

from sit_atconv import ATConv, SiTTransformer2DModel
from sit_atconv.flow.guidance import Guidance, GuidedModel
from sit_atconv.models import transformer_sit
from sit_atconv.models.attention import PooledAttention, SelfAttention
from sit_atconv.models.embeddings import sincos_position_embedding
from sit_atconv.models.presets import MIXERS as SINGLE_MIXERS
from sit_atconv.models.transformer_sit import SiTBlock, make_mixer

REFERENCE_MODELS = ["sa", "atconv", "atconv_nosigma", "hybrid"]
MIXERS = [*SINGLE_MIXERS, "hybrid"]  # a new mixer is tested as soon as it has a name


def inputs(model, batch_size: int = 3, height: int = 8, width: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, model.config.in_channels, height, width, generator=generator)
    t = torch.rand(batch_size, generator=generator)
    return x, t, torch.arange(batch_size) % model.config.num_classes


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_parity(name, parity_model, assert_close):
    model, reference = parity_model(name)
    x, t, y = (reference[f"in.{key}"] for key in "xty")
    assert_close(model(x, t, y).sample, reference["out.forward"], 1e-5)
    guided = GuidedModel(model, y, Guidance(4.0, channels=3))
    assert_close(guided(x, t), reference["out.cfg3_scale4"], 1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_modulations_of_many_times_at_once(mixer, tiny_transformer, assert_close):
    model = tiny_transformer(mixer=mixer).requires_grad_(False)
    x, t, y = inputs(model)
    modulations = model.modulations(t, y)
    assert modulations.shape == (3, 3, (6 * 2 + 2) * 16)
    for i in range(3):
        expected = model(x, t[i], y).sample
        assert_close(model(x, None, None, modulation=modulations[i]).sample, expected, 1e-5)
    with pytest.raises(ValueError, match="must be between"):
        model.modulations(t, y + 5)


def test_pretended_tensors_leave_nothing_behind(tiny_transformer):
    """As tools do that estimate memory: a real pass over the same grid, of which there was none before, still runs."""
    model = tiny_transformer(mixer="hybrid")
    x, t, y = inputs(model, 1, 4, 20)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x), mode.from_tensor(t), mode.from_tensor(y)).sample.shape == x.shape
    assert model(x, t, y).sample.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("mixer", SINGLE_MIXERS)
def test_the_compiler_fuses_modulation_and_gates(mixer, tiny_transformer, assert_close):
    """Three loops over the tokens beside mixer and MLP: norm and modulation; gate, sum, norm and modulation; gate and
    sum. Inductor names a loop after what it has fused in it."""
    block = SiTBlock(16, make_mixer(mixer, 2, tiny_transformer().config), 32).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, condition = torch.randn(2, 16, 16), torch.randn(2, 16)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True)
        actual, (code,) = run_and_get_code(compiled, x, condition, (4, 4))
        assert_close(actual, block(x, condition, (4, 4)), 1e-5)
    loops = re.findall(r"^(?:cpp|triton)\w*_fused_(\w+) = ", code, re.MULTILINE)
    assert ["addcmul" in name for name in loops if "native_layer_norm" in name] == [True, True]
    gates = [name for name in loops if "addcmul" in name and "sigmoid" not in name and "native_layer_norm" not in name]
    assert len(gates) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_compiles_without_graph_breaks(mixer, tiny_transformer, assert_close):
    """In sampling, in training, and block by block: fullgraph refuses a break."""
    model = tiny_transformer(mixer=mixer)
    x, t, y = inputs(model)
    expected = model(x, t, y).sample
    (gradient,) = torch.autograd.grad(expected.square().sum(), model.proj_out.weight)
    modulation = model.modulations(t, y)[0]
    torch.compiler.reset()

    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    output = whole(x, t, y).sample
    assert_close(output, expected, 1e-5)
    (compiled,) = torch.autograd.grad(output.square().sum(), model.proj_out.weight)
    assert_close(compiled, gradient, 1e-5)

    with torch.no_grad():
        sampling = torch.compile(model, backend="eager", fullgraph=True)
        assert_close(sampling(x, None, None, modulation=modulation).sample, model(x, t[0], y).sample, 1e-5)
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        assert_close(model(x, t, y).sample, expected, 1e-5)


def test_tokens_are_contiguous_in_every_block(tiny_transformer):
    """Strides of a transposed patch embedding would be inherited by every sum, and each norm would copy its input."""
    model = tiny_transformer(mixer="hybrid")
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].is_contiguous()))
    model(*inputs(model))
    assert seen == [True, True]


def forward_by_hand(model, x, t, y):
    """The model of the paper, operation by operation."""
    B, _, height, width = x.shape
    p, heads = model.config.patch_size, model.config.num_attention_heads
    H, W = height // p, width // p

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    def projections(mixer, x):
        """Queries, keys and values: of all tokens, or keys and values of the means of tiles."""
        if isinstance(mixer, SelfAttention):
            return mixer.qkv(x).chunk(3, dim=2)
        starts, m = [[i * side // mixer.pool for i in range(mixer.pool)] for side in (H, W)], mixer.pool
        stops = [[((i + 1) * side + m - 1) // m for i in range(m)] for side in (H, W)]
        rows, columns = (list(map(slice, *ends)) for ends in zip(starts, stops, strict=True))
        image = x.unflatten(1, (H, W))
        tiles = torch.stack([image[:, row, column].mean((1, 2)) for row in rows for column in columns], dim=1)
        return mixer.q_proj(x), *mixer.kv_proj(tiles).chunk(2, dim=2)

    def attend(block, x):
        q, k, v = (part.unflatten(2, (heads, -1)) for part in projections(block.mixer, x))
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        return block.mixer.out_proj(torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v).flatten(2))

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))

    patches = x.unflatten(3, (W, p)).unflatten(2, (H, p)).permute(0, 2, 4, 1, 3, 5).reshape(B, H * W, -1)
    tokens = patches @ model.patch_embed.weight.flatten(1).T + model.patch_embed.bias
    if model.position_embedding == "sincos":
        tokens = tokens + sincos_position_embedding(tokens.shape[-1], (H, W), x.device)
    angles = t[:, None] * 10000 ** (-torch.arange(128) / 128)
    hidden = model.time_embed.linear_1(torch.cat([angles.cos(), angles.sin()], dim=1))
    condition = model.time_embed.linear_2(hidden * hidden.sigmoid()) + model.class_embed.weight[y]
    condition = (condition * condition.sigmoid())[:, None]
    for block in model.blocks:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation(condition).chunk(6, dim=2)
        modulated = norm(tokens) * (1 + scale_1) + shift_1
        is_atconv = isinstance(block.mixer, ATConv)
        tokens = tokens + gate_1 * (block.mixer(modulated, (H, W)) if is_atconv else attend(block, modulated))
        modulated = norm(tokens) * (1 + scale_2) + shift_2
        tokens = tokens + gate_2 * block.mlp.fc2(gelu(block.mlp.fc1(modulated)))
    shift, scale = model.modulation_out(condition).chunk(2, dim=2)
    pixels = model.proj_out(norm(tokens) * (1 + scale) + shift).view(B, H, W, p, p, -1)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, height, width)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("mixer", MIXERS)
def test_forward_is_the_model_of_the_paper(mixer, patch_size, tiny_transformer, assert_close):
    model = tiny_transformer(mixer=mixer, patch_size=patch_size, in_channels=2, out_channels=3)
    x, t, y = inputs(model, height=8, width=12)
    assert_close(model(x, t, y).sample, forward_by_hand(model, x, t, y), 1e-5)


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        ("atconv", "none"),
        ("attention", "sincos"),
        ("hybrid", "sincos"),
        (["atconv", "attention"], "sincos"),
        (["atconv", "atconv"], "none"),
    ],
)
def test_position_embedding_is_for_attention(mixer, expected, tiny_transformer):
    model = tiny_transformer(mixer=mixer)
    assert model.position_embedding == expected
    assert model.config.position_embedding is None
    explicit = "none" if expected == "sincos" else "sincos"
    other = tiny_transformer(mixer=mixer, position_embedding=explicit)
    assert other.position_embedding == explicit
    x, t, y = inputs(model)
    assert not torch.allclose(model(x, t, y).sample, other(x, t, y).sample)


def test_a_model_used_in_inference_mode_can_be_trained_afterwards(tiny_transformer):
    """The position embedding is kept between calls; it must not carry inference mode into training."""
    model = tiny_transformer(mixer="attention", sample_size=12)
    with torch.inference_mode():
        model(*inputs(model, height=12, width=12))
    model(*inputs(model, height=12, width=12)).sample.sum().backward()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (1, 4), (7, 1)])
def test_any_grid_and_patch_size(grid, patch_size, mixer, tiny_transformer, assert_close):
    """Nothing about resolution is in the weights; each image is on its own."""
    model = tiny_transformer(patch_size=patch_size, mixer=mixer, in_channels=2)
    x, t, y = inputs(model, 2, grid[0] * patch_size, grid[1] * patch_size)
    sample = model(x, t, y).sample
    assert sample.shape == x.shape
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]).sample for i in range(2)])
    assert_close(sample, alone, 1e-5)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_come_back_where_they_were(patch_size, tiny_transformer):
    """With the blocks and the conditioning off, an output pixel depends on the pixels of its own patch alone."""
    model = tiny_transformer(patch_size=patch_size, in_channels=2, out_channels=3)
    for block in model.blocks:
        block.modulation.weight.data.zero_()
        block.modulation.bias.data.zero_()
    x, t, y = inputs(model, 1, 8, 12)
    x.requires_grad_()
    row, column = 5, 9
    (gradient,) = torch.autograd.grad(model(x, t, y).sample[0, 1, row, column], x)
    touched = gradient[0].abs().sum(0) > 0
    expected = torch.zeros(8, 12, dtype=torch.bool)
    top, left = row - row % patch_size, column - column % patch_size
    expected[top : top + patch_size, left : left + patch_size] = True
    assert torch.equal(touched, expected)


def test_output_channels_may_differ(tiny_transformer):
    model = tiny_transformer(in_channels=2, out_channels=5)
    assert model(*inputs(model)).sample.shape == (3, 5, 8, 8)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_fresh_model_returns_zero(mixer):
    model = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2", mixer=mixer, sample_size=8)
    sample = model(*inputs(model)).sample
    torch.testing.assert_close(sample, torch.zeros_like(sample), rtol=0, atol=0)


def test_fresh_blocks_are_the_identity():
    """adaLN-zero: every gate starts at zero, whatever the tokens and the condition are."""
    model = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2", sample_size=8)
    tokens, condition = torch.randn(2, 16, model.proj_out.in_features), torch.randn(2, model.proj_out.in_features)
    for block in model.blocks:
        torch.testing.assert_close(block(tokens, condition, (4, 4)), tokens, rtol=0, atol=0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_reach_every_parameter(mixer, tiny_transformer):
    model = tiny_transformer(mixer=mixer, num_classes=3).train()
    x, t, y = inputs(model)
    dropout = torch.tensor([False, False, True])  # so that the null class is used, too
    model(x, t, y, class_dropout=dropout).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.abs().sum() > 0, f"zero gradient for {name}"
    rows = model.class_embed.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [True, True, False, True]  # labels 0 and 1, label 2 dropped to the null class


@pytest.mark.parametrize("mixer", MIXERS)
def test_time_and_class_matter(mixer, tiny_transformer):
    model = tiny_transformer(mixer=mixer)
    x, t, y = inputs(model)
    sample = model(x, t, y).sample
    assert not torch.allclose(sample, model(x, t + 0.1, y).sample)
    assert not torch.allclose(sample, model(x, t, (y + 1) % 5).sample)


@pytest.mark.parametrize("timestep", [0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.full((3,), 0.25).double()])
def test_timestep_may_be_one_number_or_one_per_sample(timestep, tiny_transformer):
    model = tiny_transformer()
    x, _, y = inputs(model)
    expected = model(x, torch.full((3,), 0.25), y).sample
    torch.testing.assert_close(model(x, timestep, y).sample, expected, rtol=0, atol=0)


def test_return_dict(tiny_transformer):
    model = tiny_transformer()
    arguments = inputs(model)
    torch.testing.assert_close(model(*arguments, return_dict=False), (model(*arguments).sample,))


def test_class_dropout_is_the_null_class(tiny_transformer):
    model = tiny_transformer(class_dropout_prob=0.5)
    x, t, y = inputs(model)
    mask = torch.tensor([True, False, True])
    dropped = y.masked_fill(mask, model.null_class)
    expected = model(x, t, dropped).sample
    torch.testing.assert_close(model.train()(x, t, y, class_dropout=mask).sample, expected)
    ignored = model.eval()(x, t, y, class_dropout=mask).sample
    torch.testing.assert_close(ignored, model(x, t, y).sample)


def test_class_dropout_has_its_probability_and_generator(tiny_transformer):
    model = tiny_transformer(class_dropout_prob=0.3).train()
    mask = model.draw_class_dropout(20_000, torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool
    assert mask.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(mask, model.draw_class_dropout(20_000, torch.Generator().manual_seed(0)))
    assert not torch.equal(mask, model.draw_class_dropout(20_000, torch.Generator().manual_seed(1)))
    # without a mask, forward draws one from the global generator
    x, t, y = inputs(model)
    torch.manual_seed(3)
    drawn = model(x, t, y).sample
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, model(x, t, y, class_dropout=model.draw_class_dropout(3)).sample)


def test_without_class_dropout_there_is_no_null_class(tiny_transformer):
    model = tiny_transformer(class_dropout_prob=0.0)
    assert model.class_embed.num_embeddings == 5
    with pytest.raises(ValueError, match="class_dropout_prob=0"):
        _ = model.null_class
    x, t, y = inputs(model)
    torch.testing.assert_close(model.train()(x, t, y).sample, model.eval()(x, t, y).sample)


def test_null_class_is_accepted_in_eval_mode_alone(tiny_transformer):
    model = tiny_transformer()
    x, t, _ = inputs(model, 1)
    null = torch.tensor([model.null_class])
    assert model.null_class == 5
    model(x, t, null)
    with pytest.raises(ValueError, match="class_labels"):
        model.train()(x, t, null)
    with pytest.raises(ValueError, match="class_labels"):
        tiny_transformer(class_dropout_prob=0.0)(x, t, null)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, -1, 2]),
        torch.tensor([0, 1, 6]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([True, False, True]),
        torch.tensor([0, 1]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor(1),
        [0, 1, 2],
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_labels_that_cannot_be_used(labels, training, tiny_transformer):
    model = tiny_transformer().train(training)
    x, t, _ = inputs(model)
    with pytest.raises(ValueError, match="class_labels"):
        model(x, t, labels)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_may_be_any_whole_numbers(dtype, tiny_transformer):
    model = tiny_transformer(num_classes=300).train()  # the null class does not fit into 8 bits
    x, t, y = inputs(model)
    mask = torch.tensor([False, True, False])
    expected = model(x, t, y, class_dropout=mask).sample
    torch.testing.assert_close(model(x, t, y.to(dtype), class_dropout=mask).sample, expected)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradient_checkpointing_changes_nothing(mixer, tiny_transformer):
    def gradients(model):
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(*inputs(model)).sample.square().mean()
        loss.backward()
        return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model = tiny_transformer(mixer=mixer).train()
    loss, expected = gradients(model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    checkpointed_loss, actual = gradients(model)
    torch.testing.assert_close(checkpointed_loss, loss)
    torch.testing.assert_close(actual, expected)


def test_declared_modules_exist(tiny_transformer):
    used = {type(module).__name__ for module in tiny_transformer(mixer="hybrid").modules()}
    declared = {*SiTTransformer2DModel._no_split_modules, *SiTTransformer2DModel._repeated_blocks}
    assert declared
    for name in declared:
        assert hasattr(transformer_sit, name)
        assert name in used


@pytest.mark.parametrize("mixer", [*MIXERS, ["atconv", "attention"]])
def test_save_and_load(mixer, tiny_transformer, tmp_path):
    model = tiny_transformer(mixer=mixer, kernel_activation="silu", kernel_pool="grid", kernel_size=5)
    model.save_pretrained(tmp_path)
    loaded = SiTTransformer2DModel.from_pretrained(tmp_path)
    assert not loaded.training
    for name, value in model.config.items():
        assert name.startswith("_") or loaded.config[name] == value, name
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    arguments = inputs(model)
    torch.testing.assert_close(loaded(*arguments).sample, model(*arguments).sample, rtol=0, atol=0)


def test_loading_in_bfloat16(tiny_transformer, tmp_path, assert_close):
    model = tiny_transformer(mixer="hybrid")
    model.save_pretrained(tmp_path)
    half = SiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    x, t, y = inputs(model)
    sample = half(x.bfloat16(), t, y).sample
    assert sample.dtype == torch.bfloat16
    assert_close(sample, model(x, t, y).sample, 0.05)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (dict(sample_size=0), "sample_size=0"),
        (dict(sample_size=9), "sample_size=9"),
        (dict(patch_size=0), "patch_size=0"),
        (dict(in_channels=0), "in_channels=0"),
        (dict(out_channels=0), "out_channels=0"),
        (dict(num_layers=0), "num_layers=0"),
        (dict(num_layers=2.0), "num_layers=2.0"),
        (dict(num_attention_heads=0), "num_attention_heads=0"),
        (dict(attention_head_dim=0), "attention_head_dim=0"),
        (dict(mlp_ratio=0.0), "mlp_ratio=0.0"),
        (dict(num_classes=0), "num_classes=0"),
        (dict(class_dropout_prob=1.0), "class_dropout_prob=1.0"),
        (dict(class_dropout_prob=-0.1), "class_dropout_prob=-0.1"),
        (dict(mixer="conv"), "mixer='conv'"),
        (dict(mixer=["atconv"]), "mixer lists 1 blocks, but num_layers=2"),
        (dict(mixer=["atconv", "hybrid"]), r"mixer\[1\]='hybrid'"),
        (dict(kernel_size=4), "kernel_size=4"),
        (dict(kernel_activation="relu"), "kernel_activation='relu'"),
        (dict(kernel_pool="max"), "kernel_pool='max'"),
        (dict(position_embedding="rope"), "position_embedding='rope'"),
        (dict(mixer="attention", num_attention_heads=1, attention_head_dim=6), "must be divisible by 4"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, field, tiny_transformer):
    with pytest.raises(ValueError, match=field):
        tiny_transformer(**arguments)


def test_only_known_mixers_are_built(tiny_transformer):
    with pytest.raises(ValueError, match="mixer='conv'"):
        make_mixer("conv", 2, tiny_transformer().config)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 2, 8, 8), "hidden_states has 2 channels"), ((3, 3, 7, 8), "height=7"), ((3, 3, 8, 9), "width=9")],
)
def test_inputs_that_do_not_fit_are_refused(shape, message, tiny_transformer):
    with pytest.raises(ValueError, match=message):
        tiny_transformer()(torch.randn(shape), 0.5, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(("qk_norm", "pool"), [(False, 4), (True, 4), (False, 8)])
def test_pooled_attention_to_every_token_is_self_attention(qk_norm, pool, assert_close):
    """Tiles of one token are the tokens themselves, and a token that is repeated counts once."""
    pooled, attention = PooledAttention(16, 2, qk_norm, pool), SelfAttention(16, 2, qk_norm)
    for kind in ("weight", "bias"):
        q, kv = getattr(pooled.q_proj, kind), getattr(pooled.kv_proj, kind)
        getattr(attention.qkv, kind).data.copy_(torch.cat([q, kv]))
    attention.out_proj.load_state_dict(pooled.out_proj.state_dict())
    tokens = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert_close(pooled(tokens, (4, 4)), attention(tokens, (4, 4)), 1e-5)
    difference = (pooled(tokens, (2, 8)) - attention(tokens, (2, 8))).abs().max()
    assert difference < 1e-5 if pool == 8 else difference > 1e-3  # with 4 × 4 tiles, two tokens to a tile


def test_qk_norm_is_layer_norm_of_each_head(tiny_transformer):
    """With it, scaling the queries' and keys' weights changes nothing, and attention is that of the normed heads."""
    model = tiny_transformer(mixer="attention", qk_norm=True)
    mixer = model.blocks[0].mixer
    torch.nn.init.uniform_(mixer.q_norm.weight, 0.5, 2)
    torch.nn.init.normal_(mixer.k_norm.bias)
    tokens = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = mixer.qkv(tokens).view(2, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
    norm = torch.nn.functional.layer_norm
    q = norm(q, (8,), mixer.q_norm.weight, mixer.q_norm.bias)
    k = norm(k, (8,), mixer.k_norm.weight, mixer.k_norm.bias)
    y = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(tokens, (2, 3)), mixer.out_proj(y))


def test_the_network_is_told_the_time_of_its_makers(tiny_transformer):
    x, y = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 5])
    t = torch.tensor([0.0, 0.25, 1.0])
    plain, steps = tiny_transformer(), tiny_transformer(timestep_at_noise=999.0, timestep_at_data=-1.0)
    torch.testing.assert_close(steps(x, t, y).sample, plain(x, 999 - 1000 * t, y).sample)
    assert not torch.allclose(steps(x, t, y).sample, plain(x, t, y).sample)


def test_a_time_that_stands_still_is_refused(tiny_transformer):
    with pytest.raises(ValueError, match="timestep_at_data"):
        tiny_transformer(timestep_at_noise=1.0, timestep_at_data=1.0)
