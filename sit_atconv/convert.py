"""Weights of the reference implementations, under our names.

The reference keeps SiT's names: `x_embedder, t_embedder, y_embedder, blocks.N.attn, final_layer`, and inside an ATConv
block `kernel_proj, kernel_gen, x_proj, proj, difference_control`.
"""

import re

import torch

# In this order: the first pattern that matches renames the parameter. 1×1 convolutions become linear layers.
_RENAMES = (
    (r"x_embedder\.proj\.(weight|bias)", r"patch_embed.\1"),
    (r"t_embedder\.mlp\.0\.(weight|bias)", r"time_embed.linear_1.\1"),
    (r"t_embedder\.mlp\.2\.(weight|bias)", r"time_embed.linear_2.\1"),
    (r"y_embedder\.embedding_table\.weight", r"class_embed.weight"),
    (r"blocks\.(\d+)\.attn\.(qkv|kernel_proj|kernel_gen)\.(weight|bias)", r"blocks.\1.mixer.\2.\3"),
    (r"blocks\.(\d+)\.attn\.x_proj\.(weight|bias)", r"blocks.\1.mixer.value_proj.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.mixer.out_proj.\2"),
    (r"blocks\.(\d+)\.attn\.difference_control", r"blocks.\1.mixer.inhibition"),
    (r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)", r"blocks.\1.modulation.\2"),
    (r"final_layer\.adaLN_modulation\.1\.(weight|bias)", r"modulation_out.\1"),
    (r"final_layer\.linear\.(weight|bias)", r"proj_out.\1"),
)


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a reference state dict for `SiTTransformer2DModel` and slice off the unused learn_sigma half.

    The fixed `pos_embed` is dropped: our models compute it for the grid at hand. Where the last layer has twice the
    input's channels, only its first half is ever returned by the reference, so only that half is kept.

    Raises:
        ValueError: listing the parameters whose names are not known.
    """
    converted, unknown = {}, []
    for name, tensor in state_dict.items():
        if name == "pos_embed":
            continue
        for pattern, replacement in _RENAMES:
            if match := re.fullmatch(pattern, name):
                is_pointwise = tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and name != "x_embedder.proj.weight"
                converted[match.expand(replacement)] = tensor.flatten(1) if is_pointwise else tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"not parameters of a SiT or ATConv model: {', '.join(sorted(unknown))}")

    _, in_channels, patch_size, _ = converted["patch_embed.weight"].shape
    if converted["proj_out.bias"].numel() == 2 * in_channels * patch_size**2:
        for name in ("proj_out.weight", "proj_out.bias"):
            # The rows are ordered (p, p, channel), the discarded half being the last channels of each pixel.
            rows = converted[name].unflatten(0, (patch_size**2, 2 * in_channels))[:, :in_channels]
            converted[name] = rows.flatten(0, 1).contiguous()
    return converted
