"""The block of SiT: a mixer and an MLP, both under adaLN-zero conditioning.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, D model width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.depthwise_conv import depthwise_conv
from ..ops.linear import Linear, linear_gelu
from .atconv import ATConv
from .attention import PooledAttention, SelfAttention


def make_mixer(name: str, num_heads: int, config: Mapping) -> nn.Module:
    """Build the mixer of a block from its heads and the model's config: forward(tokens (B, N, D), grid) -> like it."""
    dim = num_heads * config["attention_head_dim"]
    if name == "attention":
        return SelfAttention(dim, num_heads, config["qk_norm"])
    if name == "pooled_attention":
        return PooledAttention(dim, num_heads, config["qk_norm"], config["attention_pool"])
    if name == "atconv":
        return ATConv(
            dim,
            config["kernel_size"],
            config["kernel_activation"],
            config["kernel_pool"],
            dilation=config["kernel_dilation"],
            channel_gate=config["channel_gate"],
            average_branch=config["average_branch"],
            kernel_groups=config["kernel_groups"],
        )
    raise ValueError(f"mixer={name!r} is not built by make_mixer; add a branch that does")


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """adaLN: x·(1 + scale) + shift, with x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class MLP(nn.Module):
    """The channel mixer: Linear, GELU (tanh form), Linear; tokens (B, N, D) on a grid (H, W) -> (B, N, D).

    Args:
        dim: D.
        hidden_dim: width between the layers.
        depthwise: convolve the hidden channels, each with its own 3×3 kernel, before the GELU, as the channel mixer of
            AttNet does. A fresh kernel is the identity.
    """

    def __init__(self, dim: int, hidden_dim: int, depthwise: bool = False):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.depthwise = nn.Parameter(torch.zeros(hidden_dim, 3, 3)) if depthwise else None
        if self.depthwise is not None:
            self.depthwise.data[:, 1, 1] = 1
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.depthwise is None:
            return self.fc2(linear_gelu(self.fc1, x))
        kernels = self.depthwise.flatten(1).expand(x.shape[0], -1, -1)  # (B, hidden, 9), the same for every image
        return self.fc2(F.gelu(depthwise_conv(self.fc1(x), kernels, grid), approximate="tanh"))


class SiTBlock(nn.Module):
    """One transformer block with adaLN-zero conditioning (Figure 3 of arXiv 2212.09748).

    Args:
        dim: D.
        mixer: forward(tokens (B, N, D), grid) -> like the tokens.
        mlp_hidden_dim, mlp_depthwise: see `MLP`.
        condition_dim: width of the condition. If None, D.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_hidden_dim: int,
        mlp_depthwise: bool = False,
        condition_dim: int | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(dim, mlp_hidden_dim, mlp_depthwise)
        self.modulation = Linear(condition_dim or dim, 6 * dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor | None,
        grid: tuple[int, int],
        modulation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix tokens and channels, (B, N, D) -> (B, N, D).

        Args:
            hidden_states: (B, N, D); the name by which diffusers' caches know it.
            condition: (B, condition_dim), the activated sum of the time and class embeddings.
            grid: (H, W) with H·W = N.
            modulation: (B, 6·D), the output of `self.modulation` if it is already known; `condition` is then ignored.
        """
        if modulation is None:
            modulation = self.modulation(condition)
        modulation_parts = modulation[:, None].chunk(6, dim=-1)  # six of (B, 1, D)
        shift_mixer, scale_mixer, gate_mixer, shift_mlp, scale_mlp, gate_mlp = modulation_parts
        x = hidden_states
        x = torch.addcmul(x, gate_mixer, self.mixer(modulate(self.norm1(x), shift_mixer, scale_mixer), grid))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp), grid))
