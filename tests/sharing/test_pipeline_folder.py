"""What a pipeline folder says of itself, without its weights being loaded."""

import json
import os
import shutil

import pytest
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler

from sit_atconv import SiTPipeline
from sit_atconv.convert import export_checkpoint
from sit_atconv.models.vae import load_vae
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler
from sit_atconv.sharing.folder import (
    check_pipeline_folder,
    describe_folder,
    is_pipeline_folder,
    read_json,
    stored_parameters,
    weights_variant,
)

TINY_VAE = {
    "encoder_block_out_channels": (4, 4, 4),
    "decoder_block_out_channels": (4, 4, 4),
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1),
}


@pytest.mark.parametrize("shards", [None, "5KB"])
def test_shapes_are_read_from_the_headers(shards, tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size=shards)
    expected = {name: tuple(tensor.shape) for name, tensor in pipe.transformer.state_dict().items()}
    assert stored_parameters(tmp_path) == expected


def test_pipes_in_the_place_of_weights_are_not_waited_for(tiny_pipeline, tmp_path):
    """By what describes, verifies, converts and loads a folder."""
    tiny_pipeline(vae=AutoencoderTiny(**TINY_VAE), in_channels=4).save_pretrained(tmp_path)
    for place, readers in {
        "transformer": [stored_parameters, lambda folder: export_checkpoint(folder, tmp_path / "out.pt")],
        "vae": [SiTPipeline.from_pretrained, lambda folder: load_vae(str(folder))],
    }.items():
        (tmp_path / place / "weights.json").unlink()
        os.mkfifo(tmp_path / place / "diffusion_pytorch_model.x.safetensors")
        file = tmp_path / place / "diffusion_pytorch_model.safetensors"
        file.rename(tmp_path / "weights")
        os.mkfifo(file)
        for read in readers:
            with pytest.raises((ValueError, OSError), match=r"is not a regular file|no file named"):
                read(tmp_path)
        file.unlink()
        (tmp_path / "weights").rename(file)
        (tmp_path / place / "diffusion_pytorch_model.x.safetensors").unlink()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors"], "bf16"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], None),
        ([], None),
    ],
)
def test_the_variant_to_name(names, expected, tmp_path):
    (tmp_path / "transformer").mkdir()
    for name in names:
        (tmp_path / "transformer" / name).touch()
    assert weights_variant(tmp_path) == expected


def test_a_folder_with_a_vae_and_a_scheduler_of_diffusers(tiny_pipeline, tmp_path):
    vae = AutoencoderTiny(**TINY_VAE)
    pipe = tiny_pipeline(FlowMatchEulerDiscreteScheduler(), vae, in_channels=4, mixer=["atconv", "attention"])
    pipe.save_pretrained(tmp_path)
    config, facts = pipe.transformer.config, describe_folder(tmp_path)
    side = config.sample_size
    assert facts["images"] == f"{4 * side} × {4 * side} pixels; the network sees 4 × {side} × {side}"
    assert facts["VAE"] == "AutoencoderTiny"
    assert facts["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert facts["blocks"].startswith("atconv, attention, width ")
    count = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    assert facts["parameters"] == f"{count / 1e6:.2f} M"


def test_a_folder_of_an_hourglass(tiny_pipeline, tmp_path):
    tiny_pipeline(num_layers=4, middle_layers=2, middle_attention_heads=3).save_pretrained(tmp_path)
    expected = "4 × atconv (blocks 1 to 2 on a grid of half the sides, width 24), width 16, 2 heads, patch 2"
    assert describe_folder(tmp_path)["blocks"] == expected


def test_a_folder_with_guidance_built_in(tiny_pipeline, tmp_path):
    tiny_pipeline(MeanFlowScheduler(), step_conditioning="span", trained_guidance_scale=2.5).save_pretrained(tmp_path)
    facts = describe_folder(tmp_path)
    assert facts["classes"] == "5, guidance of scale 2.5 is built in, and no other is applied; 5 names"
    assert facts["scheduler"] == "MeanFlowScheduler: path linear, prediction velocity"


def test_folders_of_something_else(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    check_pipeline_folder(tmp_path)
    assert is_pipeline_folder(tmp_path) and not is_pipeline_folder(tmp_path / "transformer")
    with pytest.raises(ValueError, match=r"^folder='.*transformer' is not a pipeline folder: it has no model_index"):
        check_pipeline_folder(tmp_path / "transformer")
    index = tmp_path / "model_index.json"
    for name in ("DiTPipeline", ["pipeline_dit", "DiTPipeline"]):
        index.write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ValueError, match="not a folder of a SiTPipeline, but of DiTPipeline"):
            check_pipeline_folder(tmp_path)
    index.write_text(json.dumps({"_class_name": ["pipeline_sit", "SiTPipeline"]}))
    check_pipeline_folder(tmp_path)
    shutil.rmtree(tmp_path / "transformer")
    with pytest.raises(ValueError, match="is not a pipeline folder: it has no transformer"):
        check_pipeline_folder(tmp_path)


def test_a_json_file_that_is_not_there(tmp_path):
    assert read_json(tmp_path / "none.json") == {}
