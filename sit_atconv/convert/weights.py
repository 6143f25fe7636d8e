"""Weights of the reference implementations as those of `SiTTransformer2DModel`, and back."""

from typing import Any

import torch

from ..models.embeddings import sincos_position_embedding
from ..models.presets import mixer_per_block
from ..models.transformer_sit import SiTTransformer2DModel
from ..utils.checks import check_choice
from .layouts import LAYOUTS, is_pointwise
from .names import LAST_LAYER, PATCH_EMBEDDING, POSITION_EMBEDDING, PROJECTORS, TO_OURS, TO_REFERENCE, rename

Halves = tuple[torch.Tensor, torch.Tensor | None]


def last_layer_halves(state_dict: dict[str, torch.Tensor]) -> dict[str, Halves]:
    """Split the tensors of the last layer into the rows that make the output and those of the learn_sigma half.

    The second is None for a model without learn_sigma.
    """
    _, in_channels, patch_size, _ = state_dict[PATCH_EMBEDDING].shape
    halves: dict[str, Halves] = {}
    for name in LAST_LAYER:
        tensor, used = state_dict[name], in_channels * patch_size**2
        if len(tensor) != 2 * used:
            halves[name] = tensor, None
            continue
        # The rows are ordered (p, p, channel), and the unused half is the last channels of each pixel.
        rows = tensor.unflatten(0, (patch_size**2, 2, in_channels))
        output, unused = (rows[:, i].flatten(0, 1).contiguous() for i in range(2))
        halves[name] = output, unused
    return halves


def convert_state_dict(state_dict: dict[str, torch.Tensor], layout: str = "sit") -> dict[str, torch.Tensor]:
    """Rename a reference state dict for `SiTTransformer2DModel` and slice off the unused learn_sigma half.

    The fixed position embedding and REPA's projectors are dropped, and 1×1 convolutions become linear layers. If the
    last layer has twice the input's channels, the reference only ever returns the first half of its output, so only
    that half is kept. REPA's velocity points from data to noise, so its last layer changes sign.

    Raises:
        ValueError: if the names of parameters are unknown, or some are missing; the error lists them.
    """
    check_choice("layout", layout, LAYOUTS)
    kept = [name for name in state_dict if name != POSITION_EMBEDDING and not name.startswith(PROJECTORS)]
    names = {name: ours for name in kept if (ours := rename(name, TO_OURS)) is not None}
    if unknown := sorted(set(kept) - names.keys()):
        raise ValueError(f"not parameters of a SiT or ATConv model: {', '.join(unknown)}")
    if missing := sorted({PATCH_EMBEDDING, *LAST_LAYER} - names.keys()):
        raise ValueError(f"missing parameters: {', '.join(missing)}")
    last_layer = last_layer_halves(state_dict)
    converted = {}
    for name, ours in names.items():
        tensor = state_dict[name]
        if name in last_layer:
            tensor = last_layer[name][0]
            tensor = -tensor if layout == "repa" else tensor
        converted[ours] = tensor.flatten(1) if is_pointwise(name, tensor) else tensor
    return converted


def restore_state_dict(
    transformer: SiTTransformer2DModel,
    layout: str = "sit",
    pointwise: tuple[str, ...] = (),
    unused: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the weights of a model under the reference's names, bit-identical to those that it was converted from.

    Args:
        transformer: the model.
        layout: see `LAYOUTS`.
        pointwise: reference names of the weights that become 1×1 convolutions.
        unused: by reference name, the learn_sigma half, without which the result is a model without learn_sigma; and
            the position embedding, if it is not bit-identical to the computed one.

    Raises:
        ValueError: if the model has something that the reference does not know.
    """
    config, unused = transformer.config, unused or {}
    _check_known(config, layout)
    restored: dict[str, torch.Tensor] = {}
    if transformer.position_embedding == "sincos":
        embedding = unused.get(POSITION_EMBEDDING)
        restored[POSITION_EMBEDDING] = computed_embedding(transformer) if embedding is None else embedding
    for ours, tensor in transformer.state_dict().items():
        name = rename(ours, TO_REFERENCE)
        assert name is not None, f"{ours} has no name in the reference"
        if name in LAST_LAYER:
            tensor = -tensor if layout == "repa" else tensor
            if name in unused:
                halves = [half.unflatten(0, (config.patch_size**2, -1)) for half in (tensor, unused[name])]
                tensor = torch.cat(halves, dim=1).flatten(0, 1)
        restored[name] = tensor[:, :, None, None] if name in pointwise else tensor
    return restored


def _check_known(config: Any, layout: str) -> None:
    """Raise ValueError if a model's configuration has what the reference models of this layout have not."""
    check_choice("layout", layout, LAYOUTS)
    plain = {
        "kernel_pool": "strips",
        "kernel_dilation": 1,
        "channel_gate": False,
        "average_branch": False,
        "kernel_groups": 1,
    }
    expected = LAYOUTS[layout] | {"mlp_depthwise": False, "middle_layers": 0} | plain
    mixers = mixer_per_block(config.mixer, config.num_layers)
    if "pooled_attention" in mixers:
        raise ValueError(f"mixer={config.mixer!r}: the reference's models have no pooled attention")
    if "atconv" not in mixers:
        expected = {name: value for name, value in expected.items() if name not in {*plain, "kernel_activation"}}
    if wrong := [f"{name}={config[name]!r}" for name, value in expected.items() if config[name] != value]:
        raise ValueError(f"{', '.join(wrong)}: the reference's models of the layout {layout!r} have no such thing")


def computed_embedding(transformer: SiTTransformer2DModel) -> torch.Tensor:
    """Return the fixed position embedding (1, N, D) of a model's training size, in the type of its weights."""
    config = transformer.config
    side = config.sample_size // config.patch_size
    dim = config.num_attention_heads * config.attention_head_dim
    return sincos_position_embedding(dim, (side, side), torch.device("cpu")).to(transformer.dtype)
