"""Names of parameters: those of the reference implementations and ours.

All reference implementations share SiT's names: `x_embedder, t_embedder, y_embedder, blocks.N.attn, final_layer`, and
inside an ATConv block `kernel_proj, kernel_gen, x_proj, proj, difference_control`.
"""

import re

import torch

# The first entry that matches renames the parameter; `{}` stands for the number of a block.
RENAMES = (
    ("x_embedder.proj", "patch_embed"),
    ("t_embedder.mlp.0", "time_embed.linear_1"),
    ("t_embedder.mlp.2", "time_embed.linear_2"),
    ("y_embedder.embedding_table", "class_embed"),
    ("blocks.{}.attn.qkv", "blocks.{}.mixer.qkv"),
    ("blocks.{}.attn.q_norm", "blocks.{}.mixer.q_norm"),
    ("blocks.{}.attn.k_norm", "blocks.{}.mixer.k_norm"),
    ("blocks.{}.attn.kernel_proj", "blocks.{}.mixer.kernel_proj"),
    ("blocks.{}.attn.kernel_gen", "blocks.{}.mixer.kernel_gen"),
    ("blocks.{}.attn.x_proj", "blocks.{}.mixer.value_proj"),
    ("blocks.{}.attn.proj", "blocks.{}.mixer.out_proj"),
    ("blocks.{}.attn.difference_control", "blocks.{}.mixer.inhibition"),
    ("blocks.{}.mlp.fc1", "blocks.{}.mlp.fc1"),
    ("blocks.{}.mlp.fc2", "blocks.{}.mlp.fc2"),
    ("blocks.{}.adaLN_modulation.1", "blocks.{}.modulation"),
    ("final_layer.adaLN_modulation.1", "modulation_out"),
    ("final_layer.linear", "proj_out"),
)
TO_OURS = dict(RENAMES)
TO_REFERENCE = {ours: reference for reference, ours in RENAMES}
POSITION_EMBEDDING = "pos_embed"  # fixed; our models compute it for any grid
PATCH_EMBEDDING, CLASS_EMBEDDING = "x_embedder.proj.weight", "y_embedder.embedding_table.weight"
LAST_LAYER = ("final_layer.linear.weight", "final_layer.linear.bias")
PROJECTORS = "projectors."  # starts the names of what REPA uses in training alone
# The tensors whose shapes decide on the model, by the end of their names, with their number of axes. All others are
# compared with the model's.
AXES = {
    PATCH_EMBEDDING: 4,
    CLASS_EMBEDDING: 2,
    "final_layer.linear.weight": 2,
    "final_layer.linear.bias": 1,
    "mlp.fc1.bias": 1,
    "kernel_gen.bias": 1,
    "q_norm.weight": 1,
}


def rename(name: str, renames: dict[str, str]) -> str | None:
    """Return the other name of a parameter, None if it has none.

    Args:
        name: such as "blocks.3.attn.x_proj.weight".
        renames: `TO_OURS` or `TO_REFERENCE`.
    """
    block = re.match(r"blocks\.(\d+)\.", name)
    generic = f"blocks.{{}}.{name[block.end() :]}" if block else name
    stem, _, slot = generic.rpartition(".")
    if generic in renames:  # a parameter of its own, not one of a layer
        other = renames[generic]
    elif stem in renames and slot in ("weight", "bias"):
        other = f"{renames[stem]}.{slot}"
    else:
        return None
    return other.replace("{}", block[1]) if block else other


def block_numbers(state_dict: dict[str, torch.Tensor]) -> set[int]:
    """Return the numbers of the blocks of a reference state dict."""
    return {int(found[1]) for name in state_dict if (found := re.match(r"blocks\.(\d+)\.", name))}


def check_names(state_dict: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless a reference state dict holds the tensors of a model, no others, and none misshapen.

    The error lists the tensors.
    """
    numbers = block_numbers(state_dict) or {0}
    depth = len(numbers)
    if odd := sorted(numbers - set(range(depth))):
        raise ValueError(f"blocks {', '.join(map(str, odd[:10]))}: {depth} blocks must be numbered 0…{depth - 1}")
    expected = _expected_names(state_dict, depth)
    present = {name for name in state_dict if not name.startswith(PROJECTORS)}
    missing, unknown = sorted(expected - present), sorted(present - expected - {POSITION_EMBEDDING})
    faults = [
        f"{what} {', '.join(names)}"
        for what, names in (("missing parameters:", missing), ("not parameters of a SiT or ATConv model:", unknown))
        if names
    ]
    if faults:
        raise ValueError("; ".join(faults))
    for name, tensor in state_dict.items():
        axes = next((axes for end, axes in AXES.items() if name.endswith(end)), tensor.ndim)
        if tensor.ndim != axes or not tensor.numel():
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {axes} axes are needed, none of them empty")


def _expected_names(state_dict: dict[str, torch.Tensor], depth: int) -> set[str]:
    """Return the names of all parameters of a model with these blocks, whose mixers show by their own names."""
    layers = []
    for layer in TO_OURS:
        if ".attn." not in layer and f"{layer}.weight" != CLASS_EMBEDDING:
            layers += [layer.replace("{}", str(i)) for i in range(depth if "{}" in layer else 1)]
    alone = {CLASS_EMBEDDING}
    norms = ["q_norm", "k_norm"] if any(".attn.q_norm." in name for name in state_dict) else []
    for i in range(depth):
        mixer = f"blocks.{i}.attn"
        if f"{mixer}.kernel_gen.weight" in state_dict:
            layers += [f"{mixer}.{layer}" for layer in ("kernel_proj", "kernel_gen", "x_proj", "proj")]
            alone.add(f"{mixer}.difference_control")
        else:
            layers += [f"{mixer}.{layer}" for layer in ("qkv", "proj", *norms)]
            alone.add(POSITION_EMBEDDING)
    return alone | {f"{layer}.{slot}" for layer in layers for slot in ("weight", "bias")}
