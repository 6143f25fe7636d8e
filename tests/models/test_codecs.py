"""Each family of autoencoders: its factor and channels, the scale of its latents, and what is refused of it."""

import json

import pytest
import torch
from tiny_codecs import FAMILIES, tiny_codec

from sit_atconv.models.codecs import (
    CODECS,
    check_vae_image_size,
    codec_of,
    vae_image_channels,
    vae_latent_channels,
    vae_scale_factor,
)
from sit_atconv.models.latent_scaling import (
    check_latent_statistics,
    latent_statistics,
    normalize_latents,
    set_latent_statistics,
)
from sit_atconv.models.vae import decode, enable_tiling, encode, load_vae, posterior_moments, save_vae

PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def direct_latents(family: str, vae) -> torch.Tensor:
    """The normalized latents of the posterior's mean, as the pipelines of diffusers for this family compute them."""
    config = vae.config
    if family in ("dc-ae", "taesd"):
        return vae.encode(PIXELS, return_dict=False)[0] * config.scaling_factor
    if family == "rae":
        return vae.encode((PIXELS + 1) / 2).latent
    if family == "qwen-image":
        z = vae.encode(PIXELS.unsqueeze(2)).latent_dist.mode()
        mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (config.latents_mean, config.latents_std))
        return ((z - mean) / std).squeeze(2)
    z = vae.encode(PIXELS).latent_dist.mode()
    if family == "flux2":
        B, C, H, W = z.shape
        z = z.view(B, C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(B, C * 4, H // 2, W // 2)
        return vae.bn(z)
    if family == "e2e":
        return (z - 0.1) / 0.5
    return (z - (config.get("shift_factor") or 0)) * config.scaling_factor


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_are_those_of_diffusers(family, tmp_path):
    vae, (_, _, factor, channels) = tiny_codec(family), FAMILIES[family]
    check_latent_statistics(vae)
    latents = encode(vae, PIXELS)
    torch.testing.assert_close(latents, direct_latents(family, vae), rtol=1e-4, atol=1e-4)
    assert latents.shape == (2, channels, 16 // factor, 16 // factor)
    assert (vae_scale_factor(vae), vae_latent_channels(vae), vae_image_channels(vae)) == (factor, channels, 3)
    posterior = posterior_moments(vae, PIXELS)
    assert (posterior[1] is not None) == codec_of(vae).has_posterior
    images = decode(vae, latents)
    expected = vae((PIXELS + 1) / 2)[0] * 2 - 1 if family == "rae" else None
    if family == "qwen-image":
        expected = vae(PIXELS[:, :, None])[0][:, :, 0]
    torch.testing.assert_close(images, vae(PIXELS)[0] if expected is None else expected, rtol=1e-3, atol=1e-3)

    save_vae(vae, tmp_path / "vae")
    loaded = load_vae(str(tmp_path / "vae"))
    assert latent_statistics(loaded) == latent_statistics(vae)
    torch.testing.assert_close(encode(loaded, PIXELS), latents, rtol=0, atol=0)
    stored = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (vae_scale_factor(stored), vae_latent_channels(stored)) == (factor, channels)


def test_every_class_has_a_family():
    assert {name for name, *_ in FAMILIES.values()} == CODECS.keys()


@pytest.mark.parametrize("family", ["sd", "taesd", "dc-ae", "hunyuan-image", "qwen-image"])
def test_statistics_can_be_set_and_are_kept(family, tmp_path):
    vae = tiny_codec(family)
    mean, std = [0.5, -1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 4.0]
    set_latent_statistics(vae, mean, std)
    raw = posterior_moments(vae, PIXELS)[0]
    expected = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    save_vae(vae, tmp_path)
    torch.testing.assert_close(encode(load_vae(str(tmp_path)), PIXELS), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (dict(scaling_factor=None), "neither a scaling_factor nor latents_mean .* --statistics channels"),
        (dict(scaling_factor=0.0), r"scaling_factor=0\.0 .* above 0"),
        (dict(latents_mean=[0.0] * 4), "latents_std .* one for each of 4 channels"),
        (dict(latents_mean=[0.0] * 3, latents_std=[1.0] * 4), "latents_mean .* one for each of 4 channels"),
        (dict(latents_mean=[0.0] * 4, latents_std=[1.0, 1.0, 0.0, 1.0]), "latents_std .* above 0"),
        (dict(latents_mean=[0.0, 0.0, 0.0, float("nan")], latents_std=[1.0] * 4), "latents_mean .* finite"),
    ],
)
def test_wrong_statistics_are_refused(statistics, message):
    vae = tiny_codec("sd")
    vae.register_to_config(**statistics)
    with pytest.raises(ValueError, match=message):
        check_latent_statistics(vae)


def test_statistics_that_are_missing_in_weights():
    vae = tiny_codec("flux2")
    vae.bn.reset_running_stats()
    with pytest.raises(ValueError, match="neither a scaling_factor nor latents_mean"):
        normalize_latents(vae, torch.zeros(1, 8, 2, 2))
    with pytest.raises(ValueError, match="weights of AutoencoderKLFlux2 hold the statistics"):
        set_latent_statistics(vae, [0.0] * 8, [1.0] * 8)


def test_statistics_that_were_changed_are_found(tmp_path):
    save_vae(tiny_codec("e2e"), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["latents_std"][2] *= 2
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"latents_std in its config\.json have another SHA-256"):
        load_vae(str(tmp_path))
    (tmp_path / "weights.json").unlink()
    assert load_vae(str(tmp_path)).config.latents_std[2] == 1.0


def test_tiles_and_sizes():
    for family in ("sd", "dc-ae", "qwen-image"):
        enable_tiling(vae := tiny_codec(family), 1024)
        sides = [getattr(vae, f"tile_sample_min_{name}", 1024) for name in ("size", "height", "width")]
        assert vae.use_tiling and sides == [1024] * 3
        assert getattr(vae, "tile_sample_stride_height", 768) < 1024
    check_vae_image_size({"encoder_input_size": 28, "encoder_patch_size": 14, "patch_size": 8}, 16, 16)
    with pytest.raises(ValueError, match=r"height=32: .* 16 × 16 pixels"):
        check_vae_image_size({"encoder_input_size": 28, "encoder_patch_size": 14, "patch_size": 8}, 32, field="height")
