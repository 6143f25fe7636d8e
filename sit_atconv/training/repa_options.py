"""The options of a run whose blocks learn an encoder's features besides (REPA), and of storing these features."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..models.timm_names import check_timm_name
from ..utils.checks import check_choice, check_count, check_float32, check_positive

PROJECTORS = ("mlp", "conv")
ENCODER = "timm:"  # before the name of a model of timm


@dataclass
class RepaConfig:
    """Representation alignment

    Args:
        repa: a timm model whose features an early block learns to predict (REPA), such as
            vit_base_patch14_dinov2.lvd142m or timm:vit_base_patch14_dinov2.lvd142m. If null, no representation is
            aligned. With precomputed latents, its features are those that encode_latents.py --targets has stored.
        repa_weights: weights of the timm model: pretrained, random or a file.
        repa_coefficient: weight of the alignment loss relative to the diffusion loss.
        repa_depth: number of the block whose output is aligned, counted from 1.
        repa_projector: what maps tokens to features: mlp, three linear layers (REPA); or conv, one 3×3 convolution
            (iREPA).
        repa_spatial_norm: share of the mean over the image that is taken from each feature, above 0 and at most 1,
            before features are divided by their deviation over the image (iREPA). If null, features stay as they are.
        repa_steps: number of first updates with alignment. If null, all of them.
    """

    repa: str | None = None
    repa_weights: str = "pretrained"
    repa_coefficient: float = 0.5
    repa_depth: int = 8
    repa_projector: Literal["mlp", "conv"] = "mlp"
    repa_spatial_norm: float | None = None
    repa_steps: int | None = None

    def aligned_samples(self, batch_size: int) -> float:
        """Number of first samples of the run that are aligned: infinite if all are, 0 without a model to align with."""
        if self.repa is None:
            return 0
        return math.inf if self.repa_steps is None else self.repa_steps * batch_size


def check_repa(options: Mapping[str, Any]) -> None:
    """Check the options of a run, by name.

    Raises:
        ValueError: for an option without a model to align with, or a value out of range.
    """
    check_count("repa_depth", options["repa_depth"])
    check_positive("repa_coefficient", options["repa_coefficient"])
    check_float32("repa_coefficient", options["repa_coefficient"])
    check_choice("repa_projector", options["repa_projector"], PROJECTORS)
    if (share := options["repa_spatial_norm"]) is not None and not 0 < share <= 1:
        raise ValueError(f"repa_spatial_norm={share} must be above 0 and at most 1, such as 0.6; leave it out for none")
    if options["repa_steps"] is not None:
        check_count("repa_steps", options["repa_steps"])
    defaults = {each.name: each.default for each in dataclasses.fields(RepaConfig)}
    given = [name for name in ("repa_projector", "repa_spatial_norm", "repa_steps") if options[name] != defaults[name]]
    if options["repa"] is None and given:
        raise ValueError(
            f"{given[0]}={options[given[0]]!r} needs a model to align with; also give --repa, or leave it out"
        )


def check_targets(targets: str | None, weights: str, patch_size: int | None) -> None:
    """Check the options of features that are stored beside latents, as `encode_latents` takes them.

    Raises:
        ValueError: for an encoder that is no model of timm, weights that are not there, or options without an encoder.
    """
    if targets is None:
        if weights != "pretrained":
            raise ValueError(f"targets_weights={weights!r} are those of an encoder; also give --targets {ENCODER}NAME")
        if patch_size is not None:
            raise ValueError(
                f"targets_patch_size={patch_size} is for stored features; also give --targets {ENCODER}NAME"
            )
        return
    if patch_size is not None:
        check_count("targets_patch_size", patch_size)
    if not targets.startswith(ENCODER):
        raise ValueError(f"targets={targets!r} must be {ENCODER}NAME, such as {ENCODER}vit_base_patch14_dinov2.lvd142m")
    check_timm_name("targets", targets, targets.removeprefix(ENCODER))
    check_encoder_weights("targets_weights", weights)


def check_encoder_weights(field: str, weights: str) -> None:
    """Raise ValueError unless the option `field` names weights of an encoder."""
    if weights not in ("pretrained", "random") and not Path(weights).is_file():
        raise ValueError(f"{field}={weights!r} is neither a file nor 'pretrained' nor 'random'")
