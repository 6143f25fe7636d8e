"""What the tensors of a checkpoint, and the options saved with them, show of the model."""

import pytest
import torch
from reference_states import HEADS, as_repa

from sit_atconv import Interpolant, SiTTransformer2DModel
from sit_atconv.convert.folder import build_from_reference
from sit_atconv.convert.inspect import inspect_reference
from sit_atconv.convert.weights import restore_state_dict
from sit_atconv.models.presets import preset_name


def test_position_embedding_of_pure_atconv_models(reference_state):
    """REPA's ATConv models have one, SiT's have none."""
    state = reference_state("atconv")
    assert inspect_reference(state).config["position_embedding"] == "none"
    embedded = as_repa(state) | {"pos_embed": reference_state("sa")["pos_embed"]}
    reference = inspect_reference(embedded)
    assert (reference.config["position_embedding"], reference.config["sample_size"]) == ("sincos", 8)
    model = build_from_reference(embedded, reference)
    assert model.position_embedding == "sincos"


@pytest.mark.parametrize(
    "arguments, scale_factor, sample_size",
    [
        ({"args": {"image_size": 512}}, None, 64),  # SiT's word; 4 channels are an eighth of the size
        ({"args": {"resolution": 256}}, None, 32),  # REPA's
        ({"args": {"image_size": 512}}, 16, 32),
        ({"args": {"image_size": 512}, "sample_size": 16}, None, 16),
        ({"args": {"image_size": 512}, "sample_size": 16}, 16, 16),
        ({}, None, 32),
        ({}, 16, 32),
    ],
)
def test_the_size_by_the_options_where_no_embedding_shows_it(arguments, scale_factor, sample_size, reference_state):
    found = inspect_reference(reference_state("atconv"), **arguments)
    if scale_factor is not None:
        found.set_vae("its own", scale_factor)
    assert found.config["sample_size"] == sample_size
    assert found.sample_size_known == bool(arguments)


def test_qk_norm_shows_the_heads(reference_state):
    state = reference_state("hybrid")
    for name in ("q_norm", "k_norm"):
        state |= {f"blocks.0.attn.{name}.weight": torch.full((12,), 1.5), f"blocks.0.attn.{name}.bias": torch.ones(12)}
    reference = inspect_reference(state)
    assert (reference.config["num_attention_heads"], reference.config["qk_norm"]) == (4, True)
    model = build_from_reference(state, reference)
    assert torch.equal(model.blocks[0].mixer.q_norm.weight, torch.full((12,), 1.5))


def test_dit_is_a_noise_prediction_on_the_vp_path(reference_state):
    """Its discrete steps lie on the continuous path: alpha_bar of step n is alpha² at t = (999 − n) / 1000."""
    state = reference_state("sa")
    reference = inspect_reference(state, {"model": "DiT-XL/2"}, **HEADS)
    assert (reference.layout, reference.path, reference.prediction) == ("dit", "vp", "noise")
    model = build_from_reference(state, reference)
    start, end = model.config.timestep_at_noise, model.config.timestep_at_data
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    steps = torch.arange(1000)
    t = (steps.double() - start) / (end - start)
    torch.testing.assert_close(Interpolant("vp").alpha(t) ** 2, alpha_bar[steps], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "arguments", "classes", "dropout"),
    [
        (11, {}, 10, 0.1),
        (11, {"args": {"num_classes": 10, "class_dropout_prob": 0.2}}, 10, 0.2),
        (11, {"args": {"num_classes": 11, "cfg_prob": 0.0}}, 11, 0.0),
        (11, {"args": {"num_classes": 10, "cfg_prob": 0.3}}, 10, 0.3),
        (11, {"num_classes": 11}, 11, 0.0),
        (1001, {}, 1000, 0.1),
    ],
)
def test_class_count(rows, arguments, classes, dropout, reference_state):
    state = reference_state("atconv") | {"y_embedder.embedding_table.weight": torch.zeros(rows, 48)}
    config = inspect_reference(state, **arguments).config
    assert (config["num_classes"], config["class_dropout_prob"]) == (classes, dropout)
    build_from_reference(state, inspect_reference(state, **arguments))


def test_presets_are_recognised_by_width_and_depth():
    for name in ("SiT-S/2", "SiT-ATConv-S/4", "SiT-ATConv-S/2-Hybrid"):
        model = SiTTransformer2DModel.from_preset(name, num_classes=3, sample_size=8)
        reference = inspect_reference(restore_state_dict(model))
        assert reference.describe()["preset"] == name
        assert preset_name(model.config) == name
        assert preset_name({**model.config, "qk_norm": True}) is None
        older = {key: value for key, value in model.config.items() if not key.startswith("middle_")}
        assert preset_name(older) == name and preset_name({**older, "qk_norm": True}) is None
        for key in ("num_attention_heads", "attention_head_dim", "num_layers", "patch_size", "mixer"):
            assert reference.config[key] == model.config[key]


def change(state, drop=(), **changes):
    return {key: value for key, value in state.items() if key not in drop} | changes


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("sa", lambda s: change(s, ["blocks.1.attn.proj.bias"]), r"missing parameters: blocks\.1\.attn\.proj\.bias"),
        ("atconv", lambda s: change(s, ["blocks.1.attn.x_proj.bias"]), r"missing parameters: blocks\.1\.attn\.x_proj"),
        ("sa", lambda s: change(s, ["pos_embed"]), "missing parameters: pos_embed"),
        ("sa", lambda s: change(s, head=torch.zeros(1)), "not parameters of a SiT or ATConv model: head"),
        ("sa", lambda s: change(s, pos_embed=s["pos_embed"] + 1), "not the sin-cos embedding"),
        ("sa", lambda s: change(s, pos_embed=s["pos_embed"][:, 1:]), "not the sin-cos embedding"),
        ("sa", lambda s: change(s, pos_embed=s["pos_embed"] + 5e-3), "not the sin-cos embedding"),
        ("sa", lambda s: change(s, **{"blocks.999999999.mlp.fc1.bias": torch.zeros(3)}), "blocks 999999999: 3 blocks"),
        (
            "sa",
            lambda s: change(s, **{"x_embedder.proj.weight": torch.zeros(48)}),
            r"x_embedder.* shape \(48,\); 4 axes",
        ),
        ("atconv", lambda s: change(s, **{"blocks.0.mlp.fc1.bias": torch.tensor(1.0)}), r"shape \(\); 1 axes"),
        ("sa", lambda s: change(s, **{"blocks.0.mlp.fc2.weight": torch.zeros(48, 3)}), r"fc2\.weight \(48, 3\), not"),
        ("sa", lambda s: change(s, **{"final_layer.linear.bias": torch.zeros(5)}), "shapes that do not fit: proj_out"),
    ],
)
def test_what_does_not_fit_is_named(name, edit, message, reference_state):
    state = edit(reference_state(name))
    with pytest.raises(ValueError, match=message):
        build_from_reference(state, inspect_reference(state, **HEADS))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sa", {}, "give --num_attention_heads"),
        ("sa", {"num_attention_heads": 7}, "num_attention_heads=7"),
        ("sa", {**HEADS, "sample_size": 16}, "sample_size=16"),
        ("atconv", {"num_classes": 12}, "num_classes=12"),
        ("atconv", {"num_classes": 0}, "num_classes=0"),
        ("atconv", {"path": "straight"}, "path='straight'"),
        ("atconv", {"layout": "repa", "prediction": "noise"}, "REPA models predict the velocity"),
        ("atconv", {"layout": "mmdit"}, "layout='mmdit'"),
        ("atconv", {"args": {"path_type": "straight"}}, "path_type in the options .*='straight'"),
        ("atconv", {"args": {"prediction": "x"}}, "prediction in the options .*='x'"),
        ("atconv", {"args": {"image_size": "large"}}, "image_size='large' in the options"),
        ("atconv", {"args": {"image_size": float("inf")}}, "image_size=inf in the options"),
        ("atconv", {"args": {"resolution": float("nan")}}, "resolution=nan in the options"),
        ("atconv", {"args": {"num_classes": -(10**30)}}, "num_classes=-1000000000000000000000000000000 in the options"),
        ("atconv", {"args": {"class_dropout_prob": float("inf")}}, "class_dropout_prob=inf in the options"),
        ("sa", {"args": {"num_heads": "inf"}}, "num_heads='inf' in the options"),
        ("sa", {"args": {"num_heads": [4]}}, r"num_heads=\[4\] in the options"),
    ],
)
def test_options_that_do_not_fit(name, options, message, reference_state):
    with pytest.raises(ValueError, match=message):
        inspect_reference(reference_state(name), **options)


@pytest.mark.parametrize(
    ("model", "arguments", "layout", "assumed"),
    [
        ("sa", {}, "sit", ("layout", "path", "prediction")),
        ("sa", {"name": "DiT-XL-2-256x256.pt"}, "dit", ()),
        ("sa", {"name": "SiT-XL-2-256x256.pt"}, "sit", ("path", "prediction")),
        ("atconv", {"path": "gvp"}, "sit", ("prediction",)),
        ("sa", {"args": {"path_type": "GVP", "prediction": "noise"}}, "sit", ()),
    ],
)
def test_what_nothing_showed_is_said_to_be_assumed(model, arguments, layout, assumed, reference_state):
    reference = inspect_reference(reference_state(model), **arguments, **HEADS)
    assert (reference.layout, reference.assumed) == (layout, assumed)
    told = reference.describe()
    assert {name for name in ("layout", "path", "prediction") if told[name].endswith("; assumed")} == set(assumed)
