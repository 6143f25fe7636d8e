"""Reference weights under our names, as pipeline folders, and back."""

import argparse
import json

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from sit_atconv import Interpolant, SiTPipeline, SiTTransformer2DModel
from sit_atconv.convert.folder import (
    build_from_reference,
    convert_checkpoint,
    convert_state_dict,
    export_checkpoint,
    inspect_reference,
    restore_state_dict,
)
from sit_atconv.convert.untrusted import read_checkpoint
from sit_atconv.models.presets import preset_name

HEADS = dict(num_attention_heads=4)  # of the reference models, whose width is no preset's


@pytest.fixture(scope="module")
def reference_state(parity_model):
    def load(name: str) -> dict[str, torch.Tensor]:
        _, tensors = parity_model(name)
        return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}

    return load


def test_reference_checkpoint_is_the_reference_model(parity_dir, parity_model, assert_close):
    state, args, which = read_checkpoint(parity_dir / "reference_checkpoint.pt")
    assert which == "ema"
    _, reference = parity_model("atconv")
    loaded = build_from_reference(state, inspect_reference(state, args))
    output = loaded(*(reference[f"in.{key}"] for key in "xty")).sample
    assert_close(output, reference["out.forward"], 1e-5)


@pytest.mark.parametrize("name", ["sa", "atconv", "hybrid"])
def test_learn_sigma_half_is_sliced_off(name, parity_model, reference_state):
    """The whole last layer and the sliced one agree on the channels that the reference returns."""
    model, tensors = parity_model(name)
    state = reference_state(name)
    converted = convert_state_dict(state)
    assert converted["proj_out.weight"].shape == (16, 48)
    assert converted["proj_out.bias"].shape == (16,)
    whole = SiTTransformer2DModel.from_config(model.config, out_channels=8).eval()
    whole.load_state_dict(
        {
            **converted,
            "proj_out.weight": state["final_layer.linear.weight"],
            "proj_out.bias": state["final_layer.linear.bias"],
        }
    )
    arguments = [tensors[f"in.{key}"] for key in "xty"]
    torch.testing.assert_close(whole(*arguments).sample[:, :4], model(*arguments).sample)


def test_a_layer_without_learn_sigma_is_kept(reference_state):
    state = reference_state("atconv_nosigma")
    converted = convert_state_dict(state)
    assert converted["proj_out.weight"] is state["final_layer.linear.weight"]
    assert converted["proj_out.bias"] is state["final_layer.linear.bias"]


@pytest.mark.parametrize("name", ["sa", "atconv", "atconv_nosigma", "hybrid"])
def test_every_parameter_is_renamed_once(name, parity_model, reference_state):
    model, _ = parity_model(name)
    state = reference_state(name)
    converted = convert_state_dict(state)
    assert set(converted) == set(model.state_dict())
    assert len(converted) == len([key for key in state if key != "pos_embed"])
    assert "pos_embed" not in converted


def test_one_by_one_convolutions_become_linear_layers(reference_state):
    """The authors' REPA models hold the same operator as 1×1 convolutions."""
    state = reference_state("atconv")
    as_convolutions = {
        key: value[:, :, None, None]
        if key.endswith(("attn.kernel_proj.weight", "attn.x_proj.weight", "attn.proj.weight"))
        else value
        for key, value in state.items()
    }
    expected = convert_state_dict(state)
    converted = convert_state_dict(as_convolutions)
    for name, value in expected.items():
        assert converted[name].shape == value.shape, name
        assert torch.equal(converted[name], value), name


def test_the_input_is_left_as_it_was(reference_state):
    state = reference_state("hybrid")
    before = {key: value.clone() for key, value in state.items()}
    convert_state_dict(state)
    assert state.keys() == before.keys()
    torch.testing.assert_close(state, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.attn.relative_position", "xx_embedder.proj.weight"])
def test_unknown_parameters_are_named(name, reference_state):
    with pytest.raises(ValueError, match=name):
        convert_state_dict({**reference_state("atconv"), name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["sa", "atconv", "atconv_nosigma", "hybrid"])
def test_parity_through_the_folder_and_bitwise_back(
    name, parity_dir, parity_model, reference_state, assert_close, tmp_path
):
    """A file of the reference, made a folder by one call: its outputs, and its tensors again."""
    state = reference_state(name)
    save_file(state, tmp_path / "reference.safetensors")
    convert_checkpoint(tmp_path / "reference.safetensors", tmp_path / "folder", vae="none", **HEADS)
    pipe = SiTPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    _, tensors = parity_model(name)
    x, t, y = (tensors[f"in.{key}"] for key in "xty")
    with torch.no_grad():
        assert_close(pipe.transformer(x, t, y).sample, tensors["out.forward"], 1e-5)
        cond, null = (pipe.transformer(x, t, labels).sample for labels in (y, torch.full_like(y, 10)))
    guided = torch.cat([null[:, :3].lerp(cond[:, :3], 4), cond[:, 3:]], dim=1)
    assert_close(guided, tensors["out.cfg3_scale4"][: len(guided)], 1e-5)

    arguments = json.loads((parity_dir / "index.json").read_text())[f"model_{name}"]
    config = pipe.transformer.config
    assert config.mixer == ("hybrid" if arguments["hybrid"] else arguments["token_mixer"])
    for ours, theirs in {"num_classes": "num_classes", "patch_size": "patch_size", "num_layers": "depth"}.items():
        assert config[ours] == arguments[theirs]
    assert config.num_attention_heads * config.attention_head_dim == arguments["hidden_size"]
    if "pos_embed" in state:
        assert config.sample_size == arguments["input_size"]

    for file in ("back.pt", "back.safetensors"):
        export_checkpoint(tmp_path / "folder", tmp_path / file)
        back, _, _ = read_checkpoint(tmp_path / file)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)


def test_the_reference_checkpoint_both_ways(parity_dir, parity_model, assert_close, tmp_path):
    file = parity_dir / "reference_checkpoint.pt"
    found = convert_checkpoint(file, tmp_path / "folder", vae="none", license="mit")
    assert (found.weights, found.layout, found.learn_sigma) == ("ema", "sit", True)
    _, numbers = parity_model("atconv")  # its weights
    transformer = SiTPipeline.from_pretrained(tmp_path / "folder").transformer
    with torch.no_grad():
        sample = transformer(*(numbers[f"in.{name}"] for name in "xty")).sample
    assert_close(sample, numbers["out.forward"], 1e-5)
    back = export_checkpoint(tmp_path / "folder", tmp_path / "back.pt")
    state, _, _ = read_checkpoint(file)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    card = (tmp_path / "folder" / "README.md").read_text()
    for text in ("license: mit", "pipeline_tag: ", "library_name: diffusers", "model: SiT-ATConv-S/2"):
        assert text in card


def test_ema_and_raw_weights(reference_state, tmp_path):
    raw = reference_state("atconv")
    ema = {key: value + 1 for key, value in raw.items()}
    torch.save({"model": raw, "ema": ema, "opt": {}, "args": argparse.Namespace(vae="mse")}, tmp_path / "both.pt")
    for weights, expected in ((None, ema), ("ema", ema), ("model", raw)):
        convert_checkpoint(tmp_path / "both.pt", tmp_path / f"{weights}", weights, vae="none")
        saved = load_file(tmp_path / f"{weights}" / "transformer" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(saved["patch_embed.bias"], expected["x_embedder.proj.bias"])


@pytest.mark.parametrize("flavour, expected", [("mse", "mse"), ("ema", "ema"), ("none", "ema"), (None, "ema")])
def test_the_vae_is_the_one_of_the_training(flavour, expected, reference_state, tmp_path):
    """Of SiT's two; the tests are offline, so that it is refused by its name."""
    torch.save({"ema": reference_state("atconv"), "args": argparse.Namespace(vae=flavour)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=f"vae='stabilityai/sd-vae-ft-{expected}'"):
        convert_checkpoint(tmp_path / "weights.pt", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def as_repa(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors in REPA's form: projections as convolutions, and projectors."""
    pointwise = ("attn.kernel_proj.weight", "attn.x_proj.weight")
    state = {key: value[:, :, None, None] if key.endswith(pointwise) else value for key, value in state.items()}
    return state | {"projectors.0.0.weight": torch.ones(3, 48), "projectors.0.0.bias": torch.ones(3)}


def test_repa_models_run_from_noise_at_one_to_data(reference_state, tmp_path):
    """REPA's velocity at its time 1 − t points to noise; its kernels pass a SiLU, and it always embeds positions."""
    state = reference_state("hybrid")
    torch.save(
        {"ema": as_repa(state), "args": argparse.Namespace(path_type="cosine", prediction="v")}, tmp_path / "r.pt"
    )
    found = convert_checkpoint(tmp_path / "r.pt", tmp_path / "folder", vae="none", **HEADS)
    assert (found.layout, found.path, found.prediction) == ("repa", "gvp", "velocity")
    model = SiTPipeline.from_pretrained(tmp_path / "folder").transformer
    plain = build_from_reference(state, inspect_reference(state, layout="sit", **HEADS))
    plain.blocks[1].mixer.kernel_activation = "silu"
    x, y = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 10])
    t = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(model(x, t, y).sample, -plain(x, 1 - t, y).sample)

    back = export_checkpoint(tmp_path / "folder", tmp_path / "back.pt")
    expected = {key: value for key, value in as_repa(state).items() if not key.startswith("projectors")}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], expected[key]) for key in expected)


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
    "arguments, sample_size",
    [
        ({"args": {"image_size": 512}}, 64),  # SiT's word; 4 channels are an eighth of the size
        ({"args": {"resolution": 256}}, 32),  # REPA's
        ({"args": {"image_size": 512}, "scale_factor": 16}, 32),
        ({"args": {"image_size": 512}, "sample_size": 16}, 16),
        ({}, 32),
    ],
)
def test_the_size_by_the_options_where_no_embedding_shows_it(arguments, sample_size, reference_state):
    found = inspect_reference(reference_state("atconv"), **arguments)
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
        for key in ("num_attention_heads", "attention_head_dim", "num_layers", "patch_size", "mixer"):
            assert reference.config[key] == model.config[key]


def test_names_of_imagenet_come_with_1000_classes(reference_state, tmp_path):
    state = reference_state("atconv") | {"y_embedder.embedding_table.weight": torch.zeros(1001, 48)}
    save_file(state, tmp_path / "r.safetensors")
    convert_checkpoint(tmp_path / "r.safetensors", tmp_path / "folder", vae="none")
    pipe = SiTPipeline.from_pretrained(tmp_path / "folder")
    assert pipe.get_label_ids(["golden retriever", "otter", "tench", "Tinca tinca"]) == [207, 360, 0, 0]


def test_the_vae_travels_along_and_must_fit(reference_state, tmp_path):
    save_file(reference_state("atconv"), tmp_path / "r.safetensors")
    sizes = dict(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), upsampling_scaling_factor=2)
    for channels in (4, 3):
        vae = AutoencoderTiny(latent_channels=channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **sizes)
        vae.save_pretrained(tmp_path / f"vae{channels}")
    convert_checkpoint(tmp_path / "r.safetensors", tmp_path / "folder", vae=str(tmp_path / "vae4"))
    torch.save({"ema": reference_state("atconv"), "args": {"image_size": "64"}}, tmp_path / "sized.pt")
    convert_checkpoint(tmp_path / "sized.pt", tmp_path / "sized", vae=str(tmp_path / "vae4"))
    assert json.loads((tmp_path / "sized" / "transformer" / "config.json").read_text())["sample_size"] == 32
    assert SiTPipeline.from_pretrained(tmp_path / "folder").vae_scale_factor == 2
    with pytest.raises(ValueError, match="3 latent channels, the model 4"):
        convert_checkpoint(tmp_path / "r.safetensors", tmp_path / "other", vae=str(tmp_path / "vae3"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("folder", "r.safetensors", "sized", "sized.pt", "vae3", "vae4")
    ]


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_drifted_embeddings_go_back_bitwise(dtype, reference_state, tmp_path):
    """Averaged weights include the fixed embedding, which rounding moves a little."""
    state = {key: value.to(dtype) for key, value in reference_state("sa").items()}
    state["pos_embed"] = state["pos_embed"] * (1 - 2e-4 if dtype == torch.float16 else 1)
    save_file(state, tmp_path / "r.safetensors")
    convert_checkpoint(tmp_path / "r.safetensors", tmp_path / "folder", vae="none", **HEADS)
    back = export_checkpoint(tmp_path / "folder", tmp_path / "back.pt")
    assert {key: value.dtype for key, value in back.items()} == dict.fromkeys(state, dtype)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("layout", ["sit", "repa", "dit"])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_back_after_loading_and_saving_elsewhere(ending, layout, reference_state, tmp_path):
    """What the config tells comes along, and the file with it converts again without options."""
    save_file(reference_state("sa"), tmp_path / "r.safetensors")
    options = {} if layout == "dit" else {"path": "gvp"}
    found = convert_checkpoint(
        tmp_path / "r.safetensors", tmp_path / "a", vae="none", layout=layout, **options, **HEADS
    )
    pipe = SiTPipeline.from_pretrained(tmp_path / "a")
    pipe.save_pretrained(tmp_path / "b", variant="fp32")
    state = export_checkpoint(tmp_path / "b", tmp_path / f"back.{ending}")
    assert torch.equal(state["blocks.0.mlp.fc1.weight"], reference_state("sa")["blocks.0.mlp.fc1.weight"])
    again = convert_checkpoint(tmp_path / f"back.{ending}", tmp_path / "c", vae="none")
    assert (again.layout, again.path, again.prediction, again.assumed) == (layout, found.path, found.prediction, ())
    for key, value in SiTPipeline.from_pretrained(tmp_path / "c").transformer.state_dict().items():
        assert torch.equal(value, pipe.transformer.state_dict()[key]), key


def test_nothing_is_overwritten(parity_dir, tmp_path):
    file = parity_dir / "reference_checkpoint.pt"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists; name a new folder"):
        convert_checkpoint(file, tmp_path / "mine", vae="none")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    convert_checkpoint(file, tmp_path / "folder", vae="none")
    (tmp_path / "back.pt").write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists"):
        export_checkpoint(tmp_path / "folder", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == b"mine"


def test_models_of_ours_go_to_the_reference_where_it_knows_them(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline(mixer="hybrid")
    pipe.save_pretrained(tmp_path / "folder")
    state = export_checkpoint(tmp_path / "folder", tmp_path / "state.pt")
    again = build_from_reference(state, inspect_reference(state, num_attention_heads=2))
    for key, value in pipe.transformer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    tiny_pipeline(kernel_pool="grid").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="kernel_pool='grid'"):
        export_checkpoint(tmp_path / "other", tmp_path / "other.pt")
