"""Reference checkpoints as pipeline folders, and back."""

import argparse
import json

import pytest
import torch
from diffusers import AutoencoderTiny
from reference_states import HEADS, as_repa
from safetensors.torch import load_file, save_file

from sit_atconv import SiTPipeline
from sit_atconv.convert import folder as folder_module
from sit_atconv.convert.folder import build_from_reference, convert_checkpoint, export_checkpoint
from sit_atconv.convert.inspect import inspect_reference
from sit_atconv.convert.untrusted import read_checkpoint


def test_reference_checkpoint_is_the_reference_model(parity_dir, parity_model, assert_close):
    state, args, which = read_checkpoint(parity_dir / "reference_checkpoint.pt")
    assert which == "ema"
    _, reference = parity_model("atconv")
    loaded = build_from_reference(state, inspect_reference(state, args))
    output = loaded(*(reference[f"in.{key}"] for key in "xty")).sample
    assert_close(output, reference["out.forward"], 1e-5)


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


@pytest.mark.slow
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


def test_names_of_imagenet_come_with_1000_classes(reference_state, tmp_path):
    state = reference_state("atconv") | {"y_embedder.embedding_table.weight": torch.zeros(1001, 48)}
    save_file(state, tmp_path / "r.safetensors")
    convert_checkpoint(tmp_path / "r.safetensors", tmp_path / "folder", vae="none")
    pipe = SiTPipeline.from_pretrained(tmp_path / "folder")
    assert pipe.get_label_ids(["golden retriever", "otter", "tench", "Tinca tinca"]) == [207, 360, 0, 0]


@pytest.mark.slow
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


def test_a_model_of_pixels_needs_the_size_of_its_images(reference_state, tmp_path):
    """Where no position embedding shows it; a model of latents is taken for one of the usual size."""
    state = reference_state("atconv_nosigma")
    kernel = state["x_embedder.proj.weight"]
    used = 3 * kernel.shape[-1] ** 2  # rows of the last layer
    state |= {"x_embedder.proj.weight": kernel[:, :3].contiguous()}
    state |= {
        name: state[name][:used].contiguous() for name in ("final_layer.linear.weight", "final_layer.linear.bias")
    }
    save_file(state, tmp_path / "pixels.safetensors")
    with pytest.raises(ValueError, match="give --sample_size, in pixels"):
        convert_checkpoint(tmp_path / "pixels.safetensors", tmp_path / "folder")
    found = convert_checkpoint(tmp_path / "pixels.safetensors", tmp_path / "folder", sample_size=16)
    assert (found.config["in_channels"], found.config["sample_size"], found.vae) == (3, 16, "none")


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


@pytest.mark.slow
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
    tiny_pipeline(mixer="attention", num_layers=3, middle_layers=1, mlp_depthwise=True).save_pretrained(tmp_path / "u")
    with pytest.raises(ValueError, match="mlp_depthwise=True, middle_layers=1: the reference's models"):
        export_checkpoint(tmp_path / "u", tmp_path / "u.pt")


def test_a_checkpoint_is_inspected_once(parity_dir, tmp_path, monkeypatch):
    calls = []
    for name in ("inspect_reference", "convert_state_dict"):
        original = getattr(folder_module, name)
        monkeypatch.setattr(
            folder_module, name, lambda *args, original=original, **kwargs: calls.append(1) or original(*args, **kwargs)
        )
    monkeypatch.setattr(folder_module, "restore_state_dict", lambda *_: pytest.fail("restored all weights"))
    convert_checkpoint(parity_dir / "reference_checkpoint.pt", tmp_path / "folder", vae="none")
    assert len(calls) == 2


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
def test_a_full_disk_leaves_no_half_written_checkpoint(tiny_pipeline, tmp_path, monkeypatch, file):
    """The same command, which refuses existing files, can be run again."""

    def full(content, target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    tiny_pipeline().save_pretrained(tmp_path / "folder")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        patch.setattr("sit_atconv.convert.folder.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            export_checkpoint(tmp_path / "folder", tmp_path / file)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    export_checkpoint(tmp_path / "folder", tmp_path / file)


@pytest.mark.parametrize("name", ["new.pt", "new.safetensors", "new"])
def test_a_full_disk_is_named_and_nothing_is_left(tiny_pipeline, tmp_path, main_on_a_full_disk, name):
    """Whatever class of errors PyTorch and safetensors have for it; the folder that is read is not to blame."""
    tiny_pipeline().save_pretrained(tmp_path / "folder")
    export_checkpoint(tmp_path / "folder", tmp_path / "file.pt")
    source = tmp_path / ("file.pt" if name == "new" else "folder")
    text = main_on_a_full_disk("convert", source, tmp_path / name)
    assert text.splitlines()[-1].startswith(f"sit-atconv: error: {tmp_path / name} cannot be written: ")
    assert "Traceback" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file.pt"}


def test_a_folder_whose_weights_are_not_finite_is_not_exported(tiny_pipeline, tmp_path):
    pipeline = tiny_pipeline()
    torch.nn.init.constant_(pipeline.transformer.proj_out.bias, torch.nan)
    pipeline.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"holds weights that are not finite, such as proj_out\.bias"):
        export_checkpoint(tmp_path / "folder", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_class_names_survive_the_way_to_a_checkpoint_and_back(tiny_pipeline, tmp_path, ending):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "a")
    export_checkpoint(tmp_path / "a", tmp_path / f"model.{ending}")
    convert_checkpoint(tmp_path / f"model.{ending}", tmp_path / "b", vae="none")
    assert SiTPipeline.from_pretrained(tmp_path / "b").config.id2label == pipe.config.id2label
    assert "class_names" not in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
