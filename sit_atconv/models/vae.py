"""From images to the latents that the transformer sees, and back.

Shapes: B batch, pixels (B, C, S, S) in [−1, 1], latents (B, c, s, s).
"""

import threading
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.import_utils import is_transformers_available
from safetensors import safe_open
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..utils.checks import check_choice, is_number
from ..utils.files import check_regular
from ..utils.folder_update import updating_folder
from .codecs import CODECS, DECODING_BYTES, codec_name, codec_of, decoding_bytes, vae_config, vae_scale_factor
from .finite import check_finite
from .latent_scaling import denormalize_latents, normalize_latents
from .safetensors_only import check_weight_indices
from .weight_files import publication_rank, record_hashes, superseded_weights, verify_weights

VAE: TypeAlias = ModelMixin  # an object of one of the classes in CODECS


def vae_class(name: Any, field: str = "vae") -> Any:
    """Return the class of diffusers of this name.

    Raises:
        ValueError: if it is no autoencoder that this package uses, or needs other versions or packages.
    """
    check_choice(f"{field}: its class", name, CODECS)
    if (found := getattr(diffusers, name, None)) is None:
        raise ValueError(f"{field}: diffusers {diffusers.__version__} has no {name}; install a newer diffusers")
    if name == "AutoencoderRAE" and not is_transformers_available():
        raise ValueError(f"{field}: the encoder of {name} needs the package transformers: pip install transformers")
    return found


def load_vae(name_or_path: str) -> VAE:
    """Load an autoencoder of diffusers (see `CODECS`) from its folder, a pipeline folder or the Hub, for inference.

    The folder of latents that were encoded with their own statistics holds such an autoencoder, too.

    Raises:
        ValueError: for a folder without an autoencoder, an autoencoder of another class, a name that cannot be fetched,
            weights that are not safetensors, or missing, unexpected or damaged weights.
    """
    options = {"subfolder": "vae"} if (Path(name_or_path) / "vae" / "config.json").is_file() else {}
    try:
        config = AutoencoderKL.load_config(name_or_path, **options)
        chosen = vae_class(config.get("_class_name"), f"vae={name_or_path!r}")
        check_vae_size(config)
        check_weight_indices(name_or_path, **options)
        verify_weights(Path(name_or_path, options.get("subfolder", "")))
        vae, info = chosen.from_pretrained(name_or_path, output_loading_info=True, use_safetensors=True, **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        if any((Path(name_or_path) / options.get("subfolder", "")).glob("*.bin")):
            raise ValueError(
                f"vae={name_or_path!r} has no safetensors, and its .bin files are pickles, which can run code. If you "
                "trust them, load them with diffusers' class and use_safetensors=False, and save the VAE anew"
            ) from error
        raise ValueError(f"vae={name_or_path!r} is not a VAE folder and cannot be fetched: {reason}") from error
    if wrong := sorted(filter(_is_weight, map(str, (*info["missing_keys"], *info["unexpected_keys"])))):
        raise ValueError(f"vae={name_or_path!r}: missing or unexpected weights: {', '.join(wrong)}")
    return vae.eval().requires_grad_(False)


def _is_weight(name: str) -> bool:
    """Whether a tensor is more than the number of batches that a batch normalization has seen, which nothing uses."""
    return not name.endswith(".num_batches_tracked")


def save_vae(vae: VAE, folder: Path) -> None:
    """Save an autoencoder with the hashes of its weights and of the statistics of its latents."""

    def superseded(staging: Path) -> list[Path]:
        return superseded_weights(staging, folder, None)

    with updating_folder(folder, superseded, publication_rank) as staging:
        vae.save_pretrained(str(staging))
        record_hashes(staging, folder, superseded(staging))


def enable_tiling(vae: VAE, least: int = 512) -> None:
    """Let an autoencoder encode and decode large images tile by tile, which needs less memory.

    Args:
        vae: the autoencoder.
        least: the side of the tiles in pixels, if its config asks for smaller ones, or says nothing of them.

    Raises:
        ValueError: if it cannot, because it knows a single size of images.
    """
    try:
        vae.enable_tiling()
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(f"vae: {codec_name(vae)} makes images of one size only and has no tiles") from error
    if getattr(vae, "tile_sample_min_size", least) < least:
        vae.tile_sample_min_size = least
        vae.tile_latent_min_size = least * _latent_patch(vae) // vae_scale_factor(vae)
    for side in ("height", "width"):
        size, stride = (getattr(vae, f"tile_sample_{name}_{side}", least) for name in ("min", "stride"))
        if size < least:
            setattr(vae, f"tile_sample_min_{side}", least)
            setattr(vae, f"tile_sample_stride_{side}", stride * least // size)


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

    Autoencoders without a posterior encode an image as a point: it is the mean, and the standard deviation is None.
    """
    codec = codec_of(vae)

    def compute(x: torch.Tensor) -> torch.Tensor:
        x = x * 0.5 + 0.5 if codec.pixels_from_zero else x
        encoded = vae.encode(x[:, :, None] if codec.has_frames else x)
        posterior = getattr(encoded, "latent_dist", None)
        moments = [encoded[0]] if posterior is None else [posterior.mean, posterior.std]
        moments = [part[:, :, 0] if codec.has_frames else part for part in moments]  # (B, c, s, s)
        return torch.stack([_in_patches(vae, part.float()) for part in moments], 1)

    moments = _in_own_type(vae, compute, pixels)  # (B, 1 or 2, c, s, s)
    return moments[:, 0], (moments[:, 1] if moments.shape[1] == 2 else None)


def _in_patches(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """The latents (B, c·p², s, s) of an autoencoder (B, c, s·p, s·p) whose patches are the transformer's channels."""
    return pixel_unshuffle(latents, _latent_patch(vae)) if _latent_patch(vae) > 1 else latents


def _latent_patch(vae: VAE) -> int:
    return vae_config(vae)["patch_size"][0] if codec_of(vae).statistics == "weights" else 1


def encode(vae: VAE, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Encode pixels as the latents that the transformer sees, float32.

    Args:
        vae: one without a posterior ignores `noise`.
        pixels: (B, C, S, S) in [−1, 1].
        noise: (B, c, s, s), standard normal; makes a sample of the posterior. If None, its mean is taken.
    """
    latents, std = posterior_moments(vae, pixels)
    if noise is not None and std is not None:
        latents = latents + std * noise
    return normalize_latents(vae, latents)


def decode(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents as the transformer sees them to pixels, float32.

    Raises:
        NotFiniteError: if pixels are not finite.
    """
    return decode_own_latents(vae, denormalize_latents(vae, latents))


def decode_own_latents(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents as `posterior_moments` returns them, neither shifted nor scaled, to pixels, float32.

    The batch is decoded in parts which take at most `DECODING_BYTES`, or in single images if these are larger: the
    decoder needs a multiple of what the transformer does, which may take a whole batch.

    Raises:
        NotFiniteError: if pixels are not finite.
    """
    codec = codec_of(vae)
    height, width = (side * vae_scale_factor(vae) for side in latents.shape[-2:])
    count = max(1, DECODING_BYTES // decoding_bytes(vae, height, width, vae.dtype.itemsize))

    def compute_part(x: torch.Tensor) -> torch.Tensor:
        x = pixel_shuffle(x, _latent_patch(vae)) if _latent_patch(vae) > 1 else x
        pixels: Any = vae.decode(x[:, :, None] if codec.has_frames else x, return_dict=False)[0].float()
        pixels = pixels[:, :, 0] if codec.has_frames else pixels
        return pixels * 2 - 1 if codec.pixels_from_zero else pixels

    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([compute_part(part) for part in x.split(count)])

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
    if stored and (wrong := sorted(filter(_is_weight, stored ^ vae.state_dict().keys()))):
        raise ValueError(f"{folder}: missing or unexpected weights: {', '.join(wrong)}")
