"""Whether something else takes part in the calls of a model: hooks of accelerate, diffusers or PyTorch."""

from typing import Any

import torch


def has_diffusers_hooks(module: torch.nn.Module) -> bool:
    """Whether a module has hooks of diffusers; an empty registry of them stays where a pipeline has looked for some."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return registry is not None and len(registry.hooks) > 0


def has_hooks(model: torch.nn.Module) -> bool:
    """Whether hooks of accelerate, diffusers or PyTorch may move or gather weights whenever `forward` is called."""
    return any(
        hasattr(module, "_hf_hook") or has_diffusers_hooks(module) or module._forward_pre_hooks
        for module in model.modules()
    )
