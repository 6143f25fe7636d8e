"""Grafting: blocks of a trained transformer get another mixer, and keep everything else (arXiv 2506.05340).

D model width. Only self-attention is replaced, by ATConv.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..utils.checks import check_choice
from .presets import mixer_per_block
from .transformer_sit import SiTTransformer2DModel

INITS = ("values", "fresh")


def replaced_blocks(config: Mapping[str, Any], mixer: str | list[str]) -> list[int]:
    """The blocks of a trained model whose self-attention becomes ATConv, counted from 0.

    Args:
        config: the config of the trained model, which may come from its file.
        mixer: the mixers after the graft, as `SiTTransformer2DModel` takes them.

    Raises:
        ValueError: if the model has no self-attention, if nothing would change, or if ATConv would be replaced.
    """
    before = mixer_per_block(config["mixer"], config["num_layers"])
    after = mixer_per_block(mixer, config["num_layers"])
    if "attention" not in before:
        raise ValueError(f"mixer={mixer!r}: the trained model has no self-attention to replace; leave mixer out")
    if before == after:
        raise ValueError(f"mixer={mixer!r} are the mixers that the trained model has already; leave mixer out")
    if back := [i for i in range(len(before)) if before[i] != after[i] and after[i] == "attention"]:
        raise ValueError(
            f"mixer={mixer!r}: block {back[0]} of the trained model has ATConv already, and only self-attention can be "
            "replaced; leave these blocks as they are"
        )
    return [i for i in range(len(before)) if before[i] != after[i]]


def graft(
    trained: SiTTransformer2DModel, mixer: str | list[str], init: str = "values", **arguments: Any
) -> SiTTransformer2DModel:
    """Return a copy of a trained model in which ATConv replaces self-attention.

    All other weights are copied, and the position embedding stays. The graft draws its own weights from PyTorch's
    global generator.

    Args:
        trained: the trained model, which is left as it is.
        mixer: the mixers of the new model, as its constructor takes them.
        init: "values" starts ATConv with the projections of values and outputs of the attention that it replaces;
            "fresh" starts all of its weights anew.
        **arguments: how ATConv is made: kernel_size, kernel_activation, kernel_pool.

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
        for prefix in dropped:
            for kind in ("weight", "bias"):
                weights[f"{prefix}value_proj.{kind}"] = old[f"{prefix}qkv.{kind}"].chunk(3)[2]  # q, k, v: (3·D, …)
                weights[f"{prefix}out_proj.{kind}"] = old[f"{prefix}out_proj.{kind}"]
    model.load_state_dict(model.state_dict() | weights)
    return model if model.dtype == trained.dtype else model.to(trained.dtype)
