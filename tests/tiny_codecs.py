"""Tiny, randomly initialised autoencoders of each class that the toolkit uses, for RGB images of 16 pixels."""

import diffusers
import pytest
import torch
from diffusers.utils.import_utils import is_transformers_available

BLOCKS = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
KL = dict(**BLOCKS, block_out_channels=(4, 4), norm_num_groups=2)
DEEP_COMPRESSION = dict(
    latent_channels=4,
    attention_head_dim=2,
    encoder_layers_per_block=(1, 1, 1),
    decoder_layers_per_block=(1, 1, 1),
    encoder_block_out_channels=(4, 4, 8),
    decoder_block_out_channels=(4, 4, 8),
    encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    encoder_qkv_multiscales=((), (), (3,)),
    decoder_qkv_multiscales=((), (), (3,)),
    scaling_factor=0.41407,
)
RAE = dict(
    encoder_hidden_size=64,
    encoder_num_hidden_layers=1,
    encoder_patch_size=14,
    encoder_input_size=28,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=16,
    patch_size=8,
    latents_mean=[[[0.125]]] * 64,
    latents_std=[[[0.75]]] * 64,
)
# By the name of the family: the class, its arguments, the factor, and the channels that the transformer sees.
FAMILIES = {
    "sd": ("AutoencoderKL", KL, 2, 4),
    "flux1": ("AutoencoderKL", KL | dict(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False), 2, 4),
    "e2e": ("AutoencoderKL", KL | dict(scaling_factor=1.0, latents_mean=[0.1] * 4, latents_std=[0.5] * 4), 2, 4),
    "taesd": (
        "AutoencoderTiny",
        dict(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        2,
        4,
    ),
    "dc-ae": ("AutoencoderDC", DEEP_COMPRESSION, 4, 4),
    "flux2": ("AutoencoderKLFlux2", KL | dict(latent_channels=2), 4, 8),
    "hunyuan-image": (
        "AutoencoderKLHunyuanImage",
        dict(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.75289,
        ),
        2,
        4,
    ),
    "qwen-image": (
        "AutoencoderKLQwenImage",
        dict(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.7571, -0.7089, -0.9113, 0.1075],
            latents_std=[2.8184, 1.4541, 2.3275, 2.6558],
        ),
        2,
        4,
    ),
    "rae": ("AutoencoderRAE", RAE, 8, 64),
}


def tiny_codec(family: str) -> torch.nn.Module:
    """An autoencoder of this family, in eval mode; skips the test if diffusers has no such class."""
    name, arguments, *_ = FAMILIES[family]
    if not hasattr(diffusers, name) or (family == "rae" and not is_transformers_available()):
        pytest.skip(f"{name} needs a newer diffusers, or transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = getattr(diffusers, name)(**arguments).eval().requires_grad_(False)
        if family == "flux2":
            vae.bn.running_mean.normal_()
            vae.bn.running_var.uniform_(0.5, 2)
    return vae
