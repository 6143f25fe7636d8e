"""Weaker copies of a model to guide it with, without training: some blocks are left out, or mix no tokens.

They share all weights with the model. Given as `guidance_model`, the first is skip-layer guidance, the second perturbed
attention guidance (arXiv 2403.17377), carried over to ATConv: its kernels become the identity.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..utils.checks import is_whole
from .atconv import ATConv
from .attention import SelfAttention
from .hooks import has_hooks
from .transformer_sit import SiTTransformer2DModel


class ValuesAlone(nn.Module):
    """A mixer whose tokens see themselves alone: tokens (B, N, D) -> (B, N, D)."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        mixer: Any = self.mixer
        if isinstance(mixer, ATConv):
            values = mixer.value_proj(tokens)
        elif isinstance(mixer, SelfAttention):
            values = mixer.qkv(tokens).chunk(3, dim=2)[2]
        else:  # attention to pooled tokens
            values = mixer.kv_proj(tokens).chunk(2, dim=2)[1]
        return mixer.out_proj(values)


class Skipped(nn.Module):
    """A block that leaves tokens (B, N, D) as they are. Its adaLN layer stays, so that blocks keep their numbers."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.modulation = block.get_submodule("modulation")

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor | None,
        grid: tuple[int, int],
        modulation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return hidden_states


def skip_blocks(model: SiTTransformer2DModel, blocks: Sequence[int]) -> SiTTransformer2DModel:
    """Return the model with these blocks, counted from 0, leaving tokens as they are; it shares all weights.

    Raises:
        ValueError: if there is no such block, none would be left, or the model is offloaded or cached.
    """
    model = plain_model(model, blocks)
    if len(set(blocks)) == len(model.blocks):
        raise ValueError(f"blocks={list(blocks)} are all blocks of the model; leave some in")
    return _with_blocks(model, [Skipped(block) if i in blocks else block for i, block in enumerate(model.blocks)])


def perturb_mixers(model: SiTTransformer2DModel, blocks: Sequence[int]) -> SiTTransformer2DModel:
    """Return the model with these blocks, counted from 0, mixing no tokens; it shares all weights.

    Raises:
        ValueError: if there is no such block, or the model is offloaded or cached.
    """
    model = plain_model(model, blocks)

    def perturbed(block: nn.Module) -> nn.Module:
        if isinstance(block, Skipped):  # mixes none already
            return block
        view = _view(block)
        view.mixer = ValuesAlone(view.mixer)
        return view

    return _with_blocks(model, [perturbed(block) if i in blocks else block for i, block in enumerate(model.blocks)])


def plain_model(model: Any, blocks: Sequence[int]) -> SiTTransformer2DModel:
    """Return the model inside of torch.compile's wrapper, if there is one.

    Raises:
        ValueError: unless `blocks` are one or more of its blocks, and nothing else takes part in its calls.
    """
    model = getattr(model, "_orig_mod", model)
    if has_hooks(model):
        raise ValueError("the model is offloaded or cached, and a copy calls its hooks; make the weaker model first")
    if not blocks or not all(is_whole(i) and 0 <= i < len(model.blocks) for i in blocks):
        raise ValueError(f"blocks={list(blocks)} must be numbers from 0 to {len(model.blocks) - 1}, at least one")
    return model


def _with_blocks(model: SiTTransformer2DModel, blocks: Sequence[nn.Module]) -> SiTTransformer2DModel:
    view = _view(model)
    view.blocks = nn.ModuleList(blocks)
    view.training = False  # not of its blocks, which are the model's own; the pipeline sees to them while it samples
    return view


def _view(module: Any) -> Any:
    """A module with the same parameters and submodules, whose submodules can be replaced without changing the first."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view
