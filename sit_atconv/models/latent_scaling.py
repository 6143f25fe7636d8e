"""How an autoencoder's latents become those that the transformer sees: formulas over the autoencoder's config.

Each function takes the autoencoder or its config, such as the content of vae/config.json. Nothing heavy is imported, so
that a folder can be described without loading PyTorch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def vae_config(vae: Any) -> Mapping:
    """Return the config of an autoencoder, or `vae` itself if it is a config."""
    return vae if isinstance(vae, Mapping) else vae.config


def vae_scale_factor(vae: Any) -> int:
    """Return how many pixels a latent pixel covers along each side; 1 if `vae` is None."""
    return 1 if vae is None else 2 ** (len(vae_config(vae)["block_out_channels"]) - 1)


# Tensors of the widest kind at full resolution that a decoder holds at its peak. Measured: 3.8 (`eval/latency.py`).
DECODER_TENSORS = 4
DECODING_BYTES = 2 * 2**30  # what decoding several images at once may take


def decoding_bytes(vae: Any, height: int, width: int, itemsize: int = 4) -> int:
    """Return how many bytes an autoencoder takes, beyond its weights, to decode one image of height × width pixels.

    Args:
        vae: the autoencoder or its config.
        height, width: size of the image in pixels.
        itemsize: bytes of a number, 4 in float32.
    """
    channels = vae_config(vae)["block_out_channels"]
    return DECODER_TENSORS * channels[min(1, len(channels) - 1)] * height * width * itemsize


def latent_shift(vae: Any) -> float:
    """Return what is subtracted from the autoencoder's latents before they are scaled."""
    return vae_config(vae).get("shift_factor") or 0.0


def normalize_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Shift and scale an autoencoder's latents to those that the transformer sees."""
    return (latents - latent_shift(vae)) * vae_config(vae)["scaling_factor"]


def denormalize_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """The inverse of `normalize_latents`."""
    return latents / vae_config(vae)["scaling_factor"] + latent_shift(vae)
