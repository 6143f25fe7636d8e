"""The kernels that a model generates for given latents, to look at them.

B images, C channels, k kernel size; t=0 noise, t=1 data.
"""

from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin


def blocks_with_kernels(model: ModelMixin) -> list[int]:
    """The indices of the blocks of a `SiTTransformer2DModel` that generate kernels: those with ATConv."""
    return [i for i, block in enumerate(model.blocks) if hasattr(getattr(block, "mixer", None), "kernels")]


@torch.no_grad()
def generated_kernels(
    model: ModelMixin, hidden_states: torch.Tensor, timestep: torch.Tensor | float, class_labels: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Return the kernels that each block generates in one forward pass.

    Args:
        model: a `SiTTransformer2DModel` in eval mode.
        hidden_states, timestep, class_labels: as in its `forward`.

    Returns:
        (B, C, k, k) float32 by the index of the block. Rows are dy and columns dx. Blocks of attention have none.
    """
    kernels: dict[int, torch.Tensor] = {}

    def keep(index: int):
        def hook(mixer: Any, arguments: tuple) -> None:
            flat = mixer.kernels(*arguments).float()  # (B, C, k²)
            kernels[index] = flat.unflatten(2, (mixer.kernel_size, mixer.kernel_size))

        return hook

    handles = [model.blocks[i].mixer.register_forward_pre_hook(keep(i)) for i in blocks_with_kernels(model)]
    try:
        model(hidden_states, timestep, class_labels)
    finally:
        for handle in handles:
            handle.remove()
    return kernels
