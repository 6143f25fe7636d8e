"""From images to the latents that the transformer sees, and back.

Shapes: B batch, pixels (B, C, S, S) in [−1, 1], latents (B, c, s, s).
"""

import threading
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import safe_open

from ..utils.checks import check_choice, is_number
from ..utils.files import check_regular
from .finite import check_finite
from .latent_scaling import DECODING_BYTES, decoding_bytes, denormalize_latents, normalize_latents, vae_scale_factor
from .safetensors_only import check_weight_indices
from .weight_files import verify_weights

VAE: TypeAlias = AutoencoderKL | AutoencoderTiny
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def load_vae(name_or_path: str) -> VAE:
    """Load an `AutoencoderKL` or `AutoencoderTiny` from its folder, a pipeline folder or the Hub, for inference.

    Raises:
        ValueError: for a folder without an autoencoder, an autoencoder of another class, a name that cannot be fetched,
            weights that are not safetensors, or missing, unexpected or damaged weights.
    """
    options = {"subfolder": "vae"} if (Path(name_or_path) / "vae" / "config.json").is_file() else {}
    try:
        config = AutoencoderKL.load_config(name_or_path, **options)
        check_choice(f"vae={name_or_path!r}: its class", config.get("_class_name"), VAE_CLASSES)
        check_vae_size(config)
        check_weight_indices(name_or_path, **options)
        verify_weights(Path(name_or_path, options.get("subfolder", "")))
        vae, info = VAE_CLASSES[config["_class_name"]].from_pretrained(
            name_or_path, output_loading_info=True, use_safetensors=True, **options
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        if any((Path(name_or_path) / options.get("subfolder", "")).glob("*.bin")):
            raise ValueError(
                f"vae={name_or_path!r} has no safetensors, and its .bin files are pickles, which can run code. If you "
                "trust them, load them with diffusers' class and use_safetensors=False, and save the VAE anew"
            ) from error
        raise ValueError(f"vae={name_or_path!r} is not a VAE folder and cannot be fetched: {reason}") from error
    if wrong := sorted(map(str, (*info["missing_keys"], *info["unexpected_keys"]))):
        raise ValueError(f"vae={name_or_path!r}: missing or unexpected weights: {', '.join(wrong)}")
    return vae.eval().requires_grad_(False)


MAX_VAE_LAYERS = 256  # of each kind at each size
MAX_VAE_WIDTH = 2**14


def check_vae_size(config: Mapping) -> None:
    """Raise ValueError for an autoencoder that is too large to be meant, before any of it is built."""
    for field, value in config.items():
        limit = MAX_VAE_LAYERS if "layers" in field or "blocks" in field or "block_types" in field else MAX_VAE_WIDTH
        values = value if isinstance(value, (list, tuple)) else [value]
        largest = max([each for each in values if is_number(each)], default=0)
        if not max(largest, len(values)) <= limit and field != "sample_size":
            raise ValueError(
                f"{field}={str(value)[:80]} of the VAE is beyond {limit}; compare the config with where it comes from"
            )


def check_stored_models(folder: Path, given: Container[str]) -> None:
    """Check what the folders of a pipeline's components say of their weights, before anything of them is loaded.

    Args:
        folder: the pipeline's folder.
        given: names of components that are handed over, whose folders are not read.

    Raises:
        ValueError: if weights are not safetensors, or a VAE is too large to be meant.
    """
    for component in sorted(path for path in folder.glob("*/") if path.name not in given):
        check_weight_indices(component)
        if (component / "config.json").is_file() and component.name == "vae":
            check_vae_size(AutoencoderKL.load_config(component))


def posterior_moments(vae: VAE, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and standard deviation (B, c, s, s) float32 of the VAE's posterior, neither shifted nor scaled.

    The latents of a tiny autoencoder have no distribution: they are the mean, and the standard deviation is None.
    """

    def compute(x: torch.Tensor) -> torch.Tensor:
        encoded = vae.encode(x)
        if hasattr(encoded, "latent_dist"):
            return torch.stack([encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()], 1)
        return encoded.latents.float()[:, None]

    moments = _in_own_type(vae, compute, pixels)  # (B, 1 or 2, c, s, s)
    return moments[:, 0], (moments[:, 1] if moments.shape[1] == 2 else None)


def encode(vae: VAE, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Encode pixels as the latents that the transformer sees, float32.

    Args:
        vae: a tiny autoencoder ignores `noise`.
        pixels: (B, C, S, S) in [−1, 1].
        noise: (B, c, s, s), standard normal; makes a sample of the posterior. If None, its mean is taken.
    """
    latents, std = posterior_moments(vae, pixels)
    if noise is not None and std is not None:
        latents = latents + std * noise
    return normalize_latents(vae, latents)


def decode(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents as the transformer sees them to pixels, float32.

    The batch is decoded in parts which take at most `DECODING_BYTES`, or in single images if these are larger: the
    decoder needs a multiple of what the transformer does, which may take a whole batch.

    Raises:
        NotFiniteError: if pixels are not finite.
    """
    latents = denormalize_latents(vae, latents)
    height, width = (side * vae_scale_factor(vae) for side in latents.shape[-2:])
    count = max(1, DECODING_BYTES // decoding_bytes(vae, height, width, vae.dtype.itemsize))

    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([vae.decode(part, return_dict=False)[0].float() for part in x.split(count)])

    pixels = _in_own_type(vae, compute, latents)
    check_finite("the images from the VAE", pixels, vae)
    return pixels


_upcast_lock = threading.RLock()


def _in_own_type(vae: VAE, compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute with a VAE in the type of its weights; images that overflow in float16 are computed again in float32.

    diffusers marks VAEs that may overflow with `force_upcast`, but that is also the default of its config, and float32
    takes twice the time and memory; so only what did overflow is computed in it. The weights are cast and cast back,
    which is exact, and under a lock, since other threads may use them.
    """
    if vae.dtype != torch.float16:
        return compute(x.to(vae.dtype))
    with _upcast_lock:
        result = compute(x.half())
        broken = ~result.flatten(1).isfinite().all(1) & x.flatten(1).isfinite().all(1)
        if broken.any() and not _holds_broken_weights(vae):
            try:
                torch.nn.Module.to(vae, torch.float32)  # not diffusers' method, which warns
                result[broken] = compute(x[broken].float())
            finally:
                torch.nn.Module.to(vae, torch.float16)
    return result


def _holds_broken_weights(vae: VAE) -> bool:
    return not all(parameter.is_meta or parameter.isfinite().all() for parameter in vae.parameters())


def check_vae_weights(vae: VAE, folder: Path) -> None:
    """Raise ValueError unless the safetensors files in `folder`, if any, hold exactly the weights of `vae`."""
    stored = set()
    for file in folder.glob("*.safetensors"):
        check_regular(file)
        with safe_open(file, "pt") as opened:
            stored |= set(opened.keys())
    if stored and (wrong := sorted(stored ^ vae.state_dict().keys())):
        raise ValueError(f"{folder}: missing or unexpected weights: {', '.join(wrong)}")
