"""Grafting: blocks of a trained transformer get another mixer, and keep everything else (arXiv 2506.05340).

D model width. Only self-attention is replaced, by ATConv or by attention to pooled tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..utils.checks import check_choice
from .costs import block_widths
from .presets import mixer_per_block, replaced_blocks
from .transformer_sit import SiTTransformer2DModel

INITS = ("values", "fresh")


def kept_projections(mixer: str, old: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a new mixer takes over of the weights of self-attention, by their names within the mixer.

    ATConv takes the projections of values and outputs. Attention to pooled tokens takes everything: on its own grid of
    tokens it then computes the same.
    """
    parts = {kind: old[f"qkv.{kind}"].chunk(3) for kind in ("weight", "bias")}  # q, k, v: (3·D, …)
    if mixer == "atconv":
        outputs = {name: value for name, value in old.items() if name.startswith("out_proj.")}
        return outputs | {f"value_proj.{kind}": v for kind, (_, _, v) in parts.items()}
    weights = {name: value for name, value in old.items() if not name.startswith("qkv.")}
    for kind, (q, k, v) in parts.items():
        weights |= {f"q_proj.{kind}": q, f"kv_proj.{kind}": torch.cat([k, v])}
    return weights


def graft(
    trained: SiTTransformer2DModel, mixer: str | list[str], init: str = "values", **arguments: Any
) -> SiTTransformer2DModel:
    """Return a copy of a trained model in which other mixers replace self-attention.

    All other weights are copied, and the position embedding stays. The graft draws its own weights from PyTorch's
    global generator.

    Args:
        trained: the trained model, which is left as it is.
        mixer: the mixers of the new model, as its constructor takes them.
        init: "values" starts the new mixers with the projections of the attention that they replace, see
            `kept_projections`, and an average branch as attention of equal weights; "fresh" starts all of their weights
            anew.
        **arguments: how the new mixers are made, such as kernel_size.

    Raises:
        ValueError: as `replaced_blocks`, or for an unknown init.
    """
    check_choice("init", init, INITS)
    replaced = replaced_blocks(trained.config, mixer)
    config = {name: value for name, value in trained.config.items() if not name.startswith("_")}
    model = SiTTransformer2DModel(
        **{**config, **arguments, "mixer": mixer, "position_embedding": trained.position_embedding}
    )
    old: dict[str, torch.Tensor] = trained.state_dict()
    dropped = tuple(f"blocks.{i}.mixer." for i in replaced)
    weights = {name: value for name, value in old.items() if not name.startswith(dropped)}
    if init == "values":
        names = mixer_per_block(mixer, trained.config.num_layers)
        for i, prefix in zip(replaced, dropped, strict=True):
            attention = {name.removeprefix(prefix): value for name, value in old.items() if name.startswith(prefix)}
            weights |= {prefix + name: value for name, value in kept_projections(names[i], attention).items()}
            if names[i] == "atconv" and model.config.average_branch:
                weights[f"{prefix}average"] = torch.ones(block_widths(model.config)[i])
    model.load_state_dict(model.state_dict() | weights)
    return model if model.dtype == trained.dtype else model.to(trained.dtype)
