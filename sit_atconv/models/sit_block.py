"""The block of SiT: a mixer and an MLP, both under adaLN-zero conditioning.

Shapes: B batch, (H, W) token grid, N = H·W tokens in row-major order, D model width.
"""

import torch
from torch import nn

from ..ops.linear import Linear, linear_gelu


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """adaLN: x·(1 + scale) + shift, with x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class MLP(nn.Module):
    """The channel mixer: Linear, GELU (tanh form), Linear."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(linear_gelu(self.fc1, x))


class SiTBlock(nn.Module):
    """One transformer block with adaLN-zero conditioning (Figure 3 of arXiv 2212.09748)."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_hidden_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(dim, mlp_hidden_dim)
        self.modulation = Linear(dim, 6 * dim)

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
            condition: (B, D), the activated sum of the time and class embeddings.
            grid: (H, W) with H·W = N.
            modulation: (B, 6·D), the output of `self.modulation` if it is already known; `condition` is then ignored.
        """
        if modulation is None:
            modulation = self.modulation(condition)
        modulation_parts = modulation[:, None].chunk(6, dim=-1)  # six of (B, 1, D)
        shift_mixer, scale_mixer, gate_mixer, shift_mlp, scale_mlp, gate_mlp = modulation_parts
        x = hidden_states
        x = torch.addcmul(x, gate_mixer, self.mixer(modulate(self.norm1(x), shift_mixer, scale_mixer), grid))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))
