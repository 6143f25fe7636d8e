"""Features of images: clean-fid's Inception (default), ADM's, DINOv2, any timm model, TorchScript files, raw pixels.

B images of H × W pixels, F features each; images are uint8 (H, W, C).
"""

import functools
from collections.abc import Collection
from pathlib import Path

import torch

from ..utils.hashing import file_sha256
from .extractor import LITE0, Extractor, check_extractor, parse_extractor
from .inception import build_inception
from .resize import as_rgb, describe_resize, on_device, resize_clean
from .sampling import flatten_pixels


def build_extractor(
    name: str, weights: str | None, device: torch.device, outputs: Collection[str] = ("features",)
) -> Extractor:
    """Load an extractor by its name on the command line. A TorchScript file among its files is run as a program.

    Args:
        name: one of `extractor.NAMES`.
        weights: a file with the weights of the extractor. If None, they are fetched.
        device: where the network runs.
        outputs: what `embed` returns besides "features": "spatial" for sFID, "probabilities" for the Inception Score.

    Raises:
        ValueError: if there is no such extractor, or its weights cannot be fetched, read, or loaded completely.
    """
    check_extractor(name, weights, outputs)
    kind, target, size = parse_extractor(name)
    if kind == "pixels":
        return build_pixels(name)
    if kind in ("timm", LITE0):
        from .timm_features import build_timm  # only for its models: timm takes a while to import

        return build_timm(name, target, size, weights, device, outputs)
    if kind == "torchscript":
        return build_torchscript(name, target, size, device)
    return build_inception(name, weights, device, outputs)


def build_pixels(name: str) -> Extractor:
    """Raw pixels in [0, 1] as features, for tiny images."""
    return Extractor(name, "none", torch.tensor, lambda x: {"features": torch.from_numpy(flatten_pixels(x.numpy()))})


def build_torchscript(name: str, file: str, size: int | None, device: torch.device) -> Extractor:
    """Load any network as a TorchScript file: (B, 3, H, W) float32 in [0, 255] -> (B, F).

    Args:
        name: name of the extractor on the command line.
        file: the TorchScript file.
        size: side to which images are resized. If None, they are not resized, and all must have the same size.
        device: where the network runs.

    Raises:
        ValueError: if it is not a TorchScript file.
    """
    try:
        model = torch.jit.load(file, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"extractor={name!r}: {file} is not a TorchScript file: {str(error).splitlines()[0]}"
        ) from error
    if size is None:
        resize, prepare = "none", lambda image: torch.from_numpy(as_rgb(image)).permute(2, 0, 1).float()
    else:
        resize, prepare = describe_resize((size, size)), functools.partial(resize_clean, size=(size, size))
    source = {"source": file, "sha256": file_sha256(Path(file))}
    return Extractor(name, resize, prepare, lambda x: {"features": model(on_device(x, device)).flatten(1)}, source)
