"""The formulas between an autoencoder's latents and the transformer's, for autoencoders and their configs."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from sit_atconv.models.codecs import vae_scale_factor
from sit_atconv.models.latent_scaling import denormalize_latents, latent_shift, normalize_latents


def kl(**config) -> AutoencoderKL:
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    return AutoencoderKL(block_out_channels=(4, 4, 4), norm_num_groups=4, **blocks, **config)


@pytest.mark.parametrize(("config", "shift"), [(dict(shift_factor=0.25, scaling_factor=0.5), 0.25), ({}, 0.0)])
def test_latents_are_shifted_then_scaled(config, shift):
    vae, latents = kl(**config), torch.randn(2, 4, 3, 3)
    expected = (latents - shift) * config.get("scaling_factor", 0.18215)
    for source in (vae, dict(vae.config)):
        assert latent_shift(source) == shift
        torch.testing.assert_close(normalize_latents(source, latents), expected, rtol=0, atol=0)
        torch.testing.assert_close(denormalize_latents(source, expected), latents)


def test_a_manifest_holds_all_that_is_needed():
    latents = torch.ones(1)
    assert normalize_latents({"shift_factor": 0.5, "scaling_factor": 4.0}, latents).item() == 2.0


def test_scale_factor_is_that_of_the_sizes():
    vae = kl()
    assert vae_scale_factor(vae) == vae_scale_factor(dict(vae.config)) == 4
    assert vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean.shape[-1] == 16 // 4
    sizes = dict(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), upsampling_scaling_factor=2)
    assert vae_scale_factor(AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **sizes)) == 2
    assert vae_scale_factor(None) == 1
