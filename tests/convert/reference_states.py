"""State dicts of the reference models in other forms."""

import torch

HEADS = dict(num_attention_heads=4)  # of the reference models, whose width is no preset's


def as_repa(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors in REPA's form: projections as convolutions, and projectors."""
    pointwise = ("attn.kernel_proj.weight", "attn.x_proj.weight")
    state = {key: value[:, :, None, None] if key.endswith(pointwise) else value for key, value in state.items()}
    return state | {"projectors.0.0.weight": torch.ones(3, 48), "projectors.0.0.bias": torch.ones(3)}
