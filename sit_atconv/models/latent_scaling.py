"""How an autoencoder's latents become those that the transformer sees: by one number, or by statistics per channel.

Each function takes the autoencoder or its config, such as the content of vae/config.json or what a manifest of latents
records. The fields and formulas are those of diffusers: (z − shift_factor) · scaling_factor, or (z − latents_mean) /
latents_std · scaling_factor. Nothing heavy is imported, so that a folder can be described without loading PyTorch.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..utils.checks import is_number
from .codecs import codec_name, codec_of, vae_config, vae_latent_channels

if TYPE_CHECKING:
    import torch

STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def latent_shift(vae: Any) -> float:
    """Return what is subtracted from the autoencoder's latents before they are scaled."""
    return vae_config(vae).get("shift_factor") or 0.0


def latent_statistics(vae: Any) -> dict[str, Any]:
    """Return the numbers that normalize an autoencoder's latents, None for those that it does not have."""
    config = vae_config(vae)
    numbers: dict[str, Any] = {name: config.get(name) for name in STATISTICS} | {"shift_factor": latent_shift(vae)}
    if codec_of(vae).statistics == "weights" and not isinstance(vae, Mapping):
        return numbers | _batch_norm_statistics(vae)
    for name in ("latents_mean", "latents_std"):
        if numbers[name] is not None:
            numbers[name] = list(numbers[name])
    return numbers


def _batch_norm_statistics(vae: Any) -> dict[str, Any]:
    """The running mean and standard deviation of FLUX.2's batch normalization; None before it has seen any latents."""
    mean, variance = vae.bn.running_mean.double(), vae.bn.running_var.double()
    if not mean.any() and (variance == 1).all():
        return {"latents_mean": None, "latents_std": None}
    return {"latents_mean": mean.tolist(), "latents_std": (variance + vae.config.batch_norm_eps).sqrt().tolist()}


def check_latent_statistics(vae: Any, channels: int | None = None) -> None:
    """Check the numbers that normalize an autoencoder's latents.

    Args:
        vae: the autoencoder, or what is recorded of it.
        channels: number of channels of its latents, for a record; the autoencoder's own if None.

    Raises:
        ValueError: if there are none, they are not those of all channels, or no latents could have them.
    """
    numbers, name = latent_statistics(vae), codec_name(vae)
    mean, std, scale = (numbers[field] for field in ("latents_mean", "latents_std", "scaling_factor"))
    if codec_of(vae).statistics == "encoder":
        if mean is None or std is None:
            raise ValueError(
                f"vae: latents_mean and latents_std are missing in this {name}, whose encoder normalizes by them; "
                "make it with those of its channels"
            )
        return
    if mean is None and std is None:
        if scale is None:
            raise ValueError(
                f"vae: this {name} has neither a scaling_factor nor latents_mean and latents_std, so its latents have "
                "an unknown scale; compute them on your images with train/encode_latents.py --statistics channels, and "
                "give the folder that it writes as the VAE"
            )
    else:
        count = channels if isinstance(vae, Mapping) else vae_latent_channels(vae)
        for field, values in (("latents_mean", mean), ("latents_std", std)):
            check_channel_numbers(f"vae: {field} of this {name}", values, count, positive=field == "latents_std")
        if len(mean) != len(std):
            raise ValueError(
                f"vae: latents_mean and latents_std of this {name} have {len(mean)} and {len(std)} channels"
            )
    if scale is not None and not (is_number(scale) and math.isfinite(scale) and scale > 0):
        raise ValueError(
            f"vae: scaling_factor={scale!r} of this {name} must be a number above 0; take the published one"
        )


def check_channel_numbers(field: str, values: Any, count: int | None, positive: bool = False) -> None:
    """Raise ValueError unless these are finite numbers, one per channel, and above 0 if they have to be."""
    found = values if isinstance(values, (list, tuple)) else []
    fits = all(is_number(value) and math.isfinite(value) and (value > 0 or not positive) for value in found)
    if not found or not fits or count not in (None, len(found)):
        shown = f"{str(values)[:60]}, {len(found)} values"
        wanted = f"finite numbers{' above 0' if positive else ''}, one for each of {count or 'the'} channels"
        raise ValueError(f"{field} ({shown}) must be {wanted}; compute them with train/encode_latents.py")


def set_latent_statistics(vae: Any, mean: list[float], std: list[float]) -> None:
    """Let an autoencoder normalize its latents by these statistics of its channels, which its config keeps.

    Raises:
        ValueError: if its latents are normalized by its weights, or the statistics are not those of its channels.
    """
    check_statistics_can_be_set(vae)
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0, latents_mean=list(mean), latents_std=list(std))
    check_latent_statistics(vae)


def check_statistics_can_be_set(vae: Any) -> None:
    """Raise ValueError if the weights of an autoencoder, and not its config, normalize its latents."""
    if codec_of(vae).statistics != "config":
        raise ValueError(
            f"statistics='channels': the weights of {codec_name(vae)} hold the statistics of its latents; leave it out"
        )


def normalize_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Shift and scale an autoencoder's latents (…, c, s, s) to those that the transformer sees."""
    shift, divisor, scale = _terms(vae, latents)
    latents = latents - shift
    return (latents if divisor is None else latents / divisor) * scale


def denormalize_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """The inverse of `normalize_latents`."""
    shift, divisor, scale = _terms(vae, latents)
    latents = latents / scale
    return (latents if divisor is None else latents * divisor) + shift


def _terms(vae: Any, latents: "torch.Tensor") -> tuple:
    """The shift, the divisor (None for 1) and the scale of latents; per channel, they have the shape (c, 1, 1)."""
    if codec_of(vae).statistics == "encoder":
        return 0.0, None, 1.0
    numbers = latent_statistics(vae)
    mean, scale = numbers["latents_mean"], numbers["scaling_factor"]
    if mean is None:
        if scale is None:
            check_latent_statistics(vae)  # raises, and says what to do
        return numbers["shift_factor"], None, scale
    shift, divisor = (latents.new_tensor(numbers[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return shift, divisor, 1.0 if scale is None else scale
