"""Features of an encoder that are stored beside precomputed latents, so that REPA trains without the encoder.

B images of C channels and side S in pixels; N = H·W tokens of the transformer's grid, Z features of the encoder.
"""

from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset
from ..utils.hashing import file_sha256, tensors_sha256
from .repa import TargetEncoder
from .repa_options import ENCODER, check_encoder_weights


class HalfPrecisionError(ValueError):
    """Raised for features that have no finite value in half precision."""

    concerns_one_process = True  # the images of the others may have none


def open_target_encoder(
    targets: str, weights: str, latent_side: int, patch_size: int, device: torch.device | str
) -> TargetEncoder:
    """Load the encoder whose features are stored for the tokens of a transformer.

    Args:
        targets: "timm:NAME".
        weights: "pretrained", "random" or a file.
        latent_side: side of the latents.
        patch_size: patch size of the transformer.
        device: device of the encoder.

    Raises:
        ValueError: if the encoder cannot be loaded, or the patches do not divide the latents.
    """
    if latent_side % patch_size:
        raise ValueError(f"targets_patch_size={patch_size} must divide {latent_side}, the side of the latents")
    side = latent_side // patch_size
    name = targets.removeprefix(ENCODER)
    return TargetEncoder(name, weights, (side, side), device, ("targets", "targets_weights"))


def describe_targets(encoder: TargetEncoder, targets: str, weights: str) -> dict[str, Any]:
    """What a manifest says of the stored features, as JSON values."""
    return {
        "encoder": targets.removeprefix(ENCODER),
        "weights": describe_weights(weights),
        "sha256": tensors_sha256(encoder.model.state_dict()),
        "input_size": list(encoder.input_size),
        "grid": list(encoder.grid),
        "features": encoder.features,
        "dtype": "float16",
    }


def describe_weights(weights: str) -> str:
    """Which weights these are, wherever a file lies: "pretrained", "random" or "sha256:" and the hash of the file."""
    return weights if weights in ("pretrained", "random") else f"sha256:{file_sha256(Path(weights))}"


def encode_targets(encoder: TargetEncoder, pixels: torch.Tensor) -> torch.Tensor:
    """The features (B, N, Z) float16 of pixels (B, C, S, S), on the CPU.

    Raises:
        HalfPrecisionError: if a feature is not finite in half precision.
    """
    features = encoder(pixels)
    stored = features.half()
    if not stored.isfinite().all():
        raise HalfPrecisionError(
            f"targets: features of up to {features.abs().max().item():.3g} cannot be stored in half precision; choose "
            "another encoder, or other weights"
        )
    return stored.cpu()


def check_stored_targets(dataset: ImageDataset, repa: str, weights: str, grid: tuple[int, int]) -> dict[str, Any]:
    """Return what is said of the features that are stored beside latents, if they are what a run aligns with.

    Args:
        dataset: the data of the run, which are no images.
        repa: the encoder of the run.
        weights: its weights: "pretrained", "random" or a file.
        grid: (H, W) tokens of the transformer.

    Raises:
        ValueError: if there are none, or those of another encoder, of other weights or for another grid.
    """
    command = f"encode the images with --targets {ENCODER}{repa}"
    if (stored := dataset.targets) is None:
        dataset.check_pixels(f"repa={repa!r} compares features with those of images ({command}), but")
        raise AssertionError("images need no stored features")
    where = f"data={dataset.source!r} holds features of"
    if stored["encoder"] != repa:
        raise ValueError(f"repa={repa!r}: {where} {stored['encoder']!r}; give --repa {stored['encoder']}, or {command}")
    check_encoder_weights("repa_weights", weights)
    if (described := describe_weights(weights)) != stored["weights"]:
        raise ValueError(
            f"repa_weights={weights!r} ({described}): {where} other weights, {stored['weights']!r}; give those, or "
            f"{command} --targets_weights {weights}"
        )
    if list(grid) != stored["grid"]:
        height, width = stored["grid"]
        raise ValueError(
            f"repa={repa!r}: {where} {height}×{width} tokens, but the model has {grid[0]}×{grid[1]}; choose another "
            f"patch size, or {command} and the --targets_patch_size of the model"
        )
    return stored
