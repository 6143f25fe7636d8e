"""Between images and the latents that a model is trained on."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from .validation import check_choice

VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def load_vae(name_or_path: str) -> torch.nn.Module:
    """Load an `AutoencoderKL` or `AutoencoderTiny`: its folder, a pipeline folder with one, or its name on the Hub.

    Raises:
        ValueError: for a folder without one, an autoencoder of another kind, or a name that cannot be fetched.
    """
    options = {"subfolder": "vae"} if (Path(name_or_path) / "vae" / "config.json").is_file() else {}
    try:
        config = AutoencoderKL.load_config(name_or_path, **options)
        check_choice(f"vae={name_or_path!r}: its class", config.get("_class_name"), VAE_CLASSES)
        vae, info = VAE_CLASSES[config["_class_name"]].from_pretrained(
            name_or_path, output_loading_info=True, **options
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"vae={name_or_path!r} is no autoencoder folder and cannot be fetched: {reason}") from error
    if wrong := sorted(map(str, (*info["missing_keys"], *info["unexpected_keys"]))):
        raise ValueError(f"vae={name_or_path!r}: missing or unexpected weights: {', '.join(wrong)}")
    return vae.eval().requires_grad_(False)


def vae_scale_factor(vae: torch.nn.Module | None) -> int:
    """Pixels per latent pixel, along one side; 1 without a VAE."""
    return 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: torch.nn.Module, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Encode pixels (B, C, S, S) in [−1, 1] as the latents that the transformer sees, (B, c, s, s) float32.

    A KL autoencoder's posterior is sampled with `noise` (B, c, s, s); a tiny one has no spread.
    """
    encoded = vae.encode(pixels.to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        latents = posterior.mean.float() + posterior.std.float() * noise
    else:
        latents = encoded.latents.float()
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
