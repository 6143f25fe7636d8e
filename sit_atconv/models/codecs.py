"""The autoencoders of diffusers that images are trained and sampled with: what their configs say, and how they differ.

An autoencoder has a factor (pixels that a latent covers along each side), channels of images and of latents, and either
a posterior or a single latent for each image. Nothing heavy is imported, so that a folder can be described without
loading PyTorch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Tensors of the widest kind at full resolution that a decoder holds at its peak. Measured: 3.8 (`eval/latency.py`).
DECODER_TENSORS = 4
DECODING_BYTES = 2 * 2**30  # what decoding several images at once may take


def _halved_per_block(config: Mapping) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


class Codec(NamedTuple):
    """How a class of autoencoders is used.

    Args:
        factor: the factor, of a config.
        widths: channels of its layers at each size, the largest images first, of a config.
        latent_channels: channels of the latents that the transformer sees, of a config.
        image_channels: the field of the config with the channels of the images.
        has_posterior: whether images are encoded as a distribution; otherwise as a single point.
        has_frames: whether it works on videos, of which an image is a single frame.
        pixels_from_zero: whether its pixels lie in [0, 1] instead of [−1, 1].
        statistics: where the statistics are that normalize its latents: in its "config" or its "weights"; or "encoder",
            if its own encoder normalizes them.
    """

    factor: Callable[[Mapping], int] = _halved_per_block
    widths: Callable[[Mapping], Sequence[int]] = lambda config: config["block_out_channels"]
    latent_channels: Callable[[Mapping], int] = lambda config: config["latent_channels"]
    image_channels: str = "in_channels"
    has_posterior: bool = True
    has_frames: bool = False
    pixels_from_zero: bool = False
    statistics: str = "config"


CODECS = {
    "AutoencoderKL": Codec(),
    "AutoencoderTiny": Codec(has_posterior=False),
    "AutoencoderDC": Codec(
        factor=lambda config: 2 ** (len(config["encoder_block_out_channels"]) - 1),
        widths=lambda config: config["decoder_block_out_channels"],
        has_posterior=False,
    ),
    # Its latents are taken in patches of 2 × 2, which its batch normalization sees as channels.
    "AutoencoderKLFlux2": Codec(
        factor=lambda config: _halved_per_block(config) * config["patch_size"][0],
        latent_channels=lambda config: config["latent_channels"] * math.prod(config["patch_size"]),
        statistics="weights",
    ),
    "AutoencoderKLHunyuanImage": Codec(factor=lambda config: config["spatial_compression_ratio"]),
    "AutoencoderKLQwenImage": Codec(
        factor=lambda config: 2 ** len(config["temperal_downsample"]),
        widths=lambda config: [config["base_dim"] * each for each in config["dim_mult"]],
        latent_channels=lambda config: config["z_dim"],
        image_channels="input_channels",
        has_frames=True,
    ),
    "AutoencoderRAE": Codec(
        factor=lambda config: config["patch_size"],
        # Its decoder is a transformer: what a token has in its widest layer, for each pixel of a patch.
        widths=lambda config: [math.ceil(config["decoder_intermediate_size"] / config["patch_size"] ** 2)],
        latent_channels=lambda config: config["encoder_hidden_size"],
        image_channels="num_channels",
        has_posterior=False,
        pixels_from_zero=True,
        statistics="encoder",
    ),
}


def codec_name(vae: Any) -> str:
    """Return the class of an autoencoder; also of its config.json, or of what a manifest of latents records of it."""
    if isinstance(vae, Mapping):
        return vae.get("_class_name") or vae.get("class") or "AutoencoderKL"
    return type(getattr(vae, "_orig_mod", vae)).__name__  # the model inside of torch.compile's wrapper


def codec_of(vae: Any) -> Codec:
    """Return how an autoencoder, or one with this config, is used; one that is not in the table is used like a KL's."""
    return CODECS.get(codec_name(vae), CODECS["AutoencoderKL"])


def vae_config(vae: Any) -> Mapping:
    """Return the config of an autoencoder, or `vae` itself if it is a config."""
    return vae if isinstance(vae, Mapping) else vae.config


def vae_scale_factor(vae: Any) -> int:
    """Return how many pixels a latent pixel covers along each side; 1 if `vae` is None."""
    return 1 if vae is None else codec_of(vae).factor(vae_config(vae))


def vae_latent_channels(vae: Any) -> int:
    """Return the number of channels of the latents that the transformer sees."""
    return codec_of(vae).latent_channels(vae_config(vae))


def vae_image_channels(vae: Any) -> int:
    """Return the number of channels of the images that an autoencoder takes."""
    return vae_config(vae)[codec_of(vae).image_channels]


def check_vae_image_size(vae: Any, *sizes: int, field: str = "image_size") -> None:
    """Raise ValueError if an autoencoder knows a single size of images, in pixels, and this is another one."""
    config = {} if vae is None else vae_config(vae)
    if "encoder_input_size" not in config:
        return
    own = config["patch_size"] * (config["encoder_input_size"] // config["encoder_patch_size"])
    if wrong := [size for size in sizes if size != own]:
        raise ValueError(f"{field}={wrong[0]}: this {codec_name(vae)} makes images of {own} × {own} pixels; give {own}")


def decoding_bytes(vae: Any, height: int, width: int, itemsize: int = 4) -> int:
    """Return how many bytes an autoencoder takes, beyond its weights, to decode one image of height × width pixels.

    Args:
        vae: the autoencoder or its config.
        height, width: size of the image in pixels.
        itemsize: bytes of a number, 4 in float32.
    """
    channels = codec_of(vae).widths(vae_config(vae))
    return DECODER_TENSORS * channels[min(1, len(channels) - 1)] * height * width * itemsize
