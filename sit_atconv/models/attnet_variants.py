"""The published sizes of AttNet (arXiv 2510.20092) under timm's names: `timm.create_model("attnet_t2", …)`.

Importing this module registers them. `import sit_atconv` sees to it, as soon as timm has been imported as well; the
network itself (attnet.py) is imported when one is created.
"""

import difflib
from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ..utils.checks import is_whole

STAGES = 4


def _arguments(depths: Sequence[int], dims: Sequence[int], scale: bool, norm: bool, drop_path: float) -> dict[str, Any]:
    """Return a variant's arguments of `AttNet`, those that all variants share included."""
    return dict(
        depths=tuple(depths),
        dims=tuple(dims),
        kernel_sizes=(3, 3, 3, 3),
        exp_rates=(8, 8, 4, 4),
        conv_bias=True,
        use_layer_scale=scale,
        glu_dconv=(True,) * STAGES,
        glu_norm=(norm,) * STAGES,
        act_layer="GELU",
        drop_path_rate=drop_path,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "attnet_xxs": _arguments((2, 2, 4, 2), (32, 64, 128, 240), scale=False, norm=False, drop_path=0.02),
    "attnet_xs": _arguments((2, 2, 7, 2), (40, 80, 160, 320), scale=True, norm=False, drop_path=0.02),
    "attnet_s": _arguments((2, 3, 10, 3), (40, 80, 160, 320), scale=False, norm=False, drop_path=0.1),
    "attnet_t1": _arguments((2, 3, 12, 3), (48, 96, 224, 384), scale=True, norm=True, drop_path=0.1),
    "attnet_t2": _arguments((3, 3, 16, 3), (64, 128, 288, 512), scale=True, norm=True, drop_path=0.2),
    "attnet_t3": _arguments((4, 4, 26, 4), (72, 144, 320, 576), scale=True, norm=True, drop_path=0.4),
    "attnet_t4": _arguments((5, 5, 28, 5), (96, 192, 384, 768), scale=True, norm=True, drop_path=0.5),
}


def variant_arguments(name: str) -> dict[str, Any]:
    """Return a variant's arguments of `AttNet`.

    Args:
        name: a key of `VARIANTS`.

    Raises:
        ValueError: if there is no such variant.
    """
    if name not in VARIANTS:
        similar = difflib.get_close_matches(name.lower(), VARIANTS, n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"there are {', '.join(VARIANTS)}"
        raise ValueError(f"variant={name!r} is no size of AttNet; {hint}")
    return dict(VARIANTS[name])


def variant_name(arguments: dict[str, Any]) -> str | None:
    """Return the variant whose blocks have these depths and dims, None if it is none of them."""
    shape = ("depths", "dims")
    return next(
        (name for name, known in VARIANTS.items() if all(tuple(arguments[key]) == known[key] for key in shape)), None
    )


def _cfg(**kwargs) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        **kwargs,
    }


# "untrained" is timm's tag of models without weights to download.
default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg() for name in VARIANTS})


def check_out_indices(out_indices: int | Sequence[int]) -> None:
    """Raise ValueError unless `out_indices` names some of the four maps, as timm's `features_only` takes them."""
    if isinstance(out_indices, int):
        fits = 1 <= out_indices <= STAGES
    else:
        fits = len(out_indices) > 0 and all(is_whole(index) and -STAGES <= index < STAGES for index in out_indices)
    if not fits:
        raise ValueError(
            f"out_indices={out_indices!r} is out of range: AttNet has {STAGES} maps, 0 to {STAGES - 1}, or "
            f"-{STAGES} to -1 from the end; a number n is the last n"
        )


def _create_attnet(variant: str, pretrained: bool, **kwargs):
    if "out_indices" in kwargs:
        check_out_indices(kwargs["out_indices"])
    from .attnet import AttNet, checkpoint_filter_fn

    return build_model_with_cfg(
        AttNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=tuple(range(STAGES)), flatten_sequential=True),
        **{**variant_arguments(variant), **kwargs},
    )


@register_model
def attnet_xxs(pretrained: bool = False, **kwargs):
    """AttNet-XXS: 2.9 million parameters."""
    return _create_attnet("attnet_xxs", pretrained, **kwargs)


@register_model
def attnet_xs(pretrained: bool = False, **kwargs):
    """AttNet-XS: 5.6 million parameters."""
    return _create_attnet("attnet_xs", pretrained, **kwargs)


@register_model
def attnet_s(pretrained: bool = False, **kwargs):
    """AttNet-S: 7.7 million parameters."""
    return _create_attnet("attnet_s", pretrained, **kwargs)


@register_model
def attnet_t1(pretrained: bool = False, **kwargs):
    """AttNet-T1: 13.7 million parameters."""
    return _create_attnet("attnet_t1", pretrained, **kwargs)


@register_model
def attnet_t2(pretrained: bool = False, **kwargs):
    """AttNet-T2: 27.0 million parameters."""
    return _create_attnet("attnet_t2", pretrained, **kwargs)


@register_model
def attnet_t3(pretrained: bool = False, **kwargs):
    """AttNet-T3: 49.2 million parameters."""
    return _create_attnet("attnet_t3", pretrained, **kwargs)


@register_model
def attnet_t4(pretrained: bool = False, **kwargs):
    """AttNet-T4: 87.3 million parameters."""
    return _create_attnet("attnet_t4", pretrained, **kwargs)
