"""Each family of autoencoders trains and samples; a VAE whose latents have no known scale does neither."""

import json

import pytest
import torch
import train_sit
from command_runs import refused
from tiny_codecs import FAMILIES, tiny_codec

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.models.latent_scaling import latent_statistics
from sit_atconv.models.vae import save_vae
from sit_atconv.training.loop import train

SETTINGS = {
    "image_size": 16,
    "max_steps": 1,
    "batch_size": 2,
    "sample_steps": 1,
    "num_workers": 0,
    "model.num_layers": 1,
}
TRAINED_ELSEWHERE = ("sd", "flux1")  # an AutoencoderKL with a shift, in test_encode_latents.py
ONE_STEP = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TRAINED_ELSEWHERE])
def test_each_family_trains_and_samples(family, photos, tmp_path):
    vae = tiny_codec(family)
    save_vae(vae, tmp_path / "vae")
    arguments = ["--data", str(photos), "--vae", str(tmp_path / "vae"), "--output_dir", str(tmp_path / "run")]
    folder = train(train_sit.parse_arguments([*arguments, *ONE_STEP, "--model.patch_size", "1"]))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0.5 < losses[0] < 20  # of zeros against noise minus normalized latents
    pipeline = SiTPipeline.from_pretrained(folder)
    assert latent_statistics(pipeline.vae) == latent_statistics(vae)
    assert pipeline("dog", num_inference_steps=1).images[0].size == (16, 16)


def test_a_vae_without_statistics_is_refused(photos, tiny_transformer, tmp_path, capsys):
    vae = tiny_codec("sd")
    vae.register_to_config(scaling_factor=None)
    save_vae(vae, tmp_path / "vae")
    arguments = ["--data", photos, "--vae", tmp_path / "vae", "--output_dir", tmp_path / "run", *ONE_STEP]
    assert "neither a scaling_factor nor latents_mean" in refused(capsys, train_sit.main, *arguments)
    assert not (tmp_path / "run").exists()
    pipeline = SiTPipeline(tiny_transformer(in_channels=4), InterpolantODEScheduler(), vae)
    with pytest.raises(ValueError, match="neither a scaling_factor nor latents_mean"):
        pipeline(0, num_inference_steps=1)
    with pytest.raises(ValueError, match="neither a scaling_factor nor latents_mean"):
        pipeline.invert(torch.rand(1, 3, 16, 16), 0, num_inference_steps=1)
