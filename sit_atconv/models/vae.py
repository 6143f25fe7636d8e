"""Between images and the latents that a model is trained on."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import safe_open

from ..utils.checks import check_choice

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


def latent_shift(vae: torch.nn.Module) -> float:
    """What is taken from the VAE's latents before they are scaled."""
    return getattr(vae.config, "shift_factor", None) or 0.0


def posterior_moments(vae: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and standard deviation (B, c, s, s) float32 of the VAE's posterior for pixels (B, C, S, S) in [−1, 1].

    They are the VAE's own, neither shifted nor scaled. A tiny autoencoder has no spread: its latents and None.
    """
    encoded = vae.encode(pixels.to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
    return encoded.latents.float(), None


def encode(vae: torch.nn.Module, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Encode pixels (B, C, S, S) in [−1, 1] as the latents that the transformer sees, (B, c, s, s) float32.

    A KL autoencoder's posterior is sampled with `noise` (B, c, s, s), or its mean taken; a tiny one has no spread.
    """
    latents, std = posterior_moments(vae, pixels)
    if noise is not None and std is not None:
        latents = latents + std * noise
    return (latents - latent_shift(vae)) * vae.config.scaling_factor


def decode(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Decode the transformer's latents (B, c, s, s) as pixels (B, C, S, S) in [−1, 1], float32."""
    latents = latents / vae.config.scaling_factor + latent_shift(vae)
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()


def check_vae_weights(vae: torch.nn.Module, folder: Path) -> None:
    """Raise ValueError unless the safetensors files in `folder`, if any, hold just the weights of `vae`."""
    stored = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            stored |= set(opened.keys())
    if stored and (wrong := sorted(stored ^ vae.state_dict().keys())):
        raise ValueError(f"{folder}: missing or unexpected weights: {', '.join(wrong)}")
