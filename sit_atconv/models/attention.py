"""Attention as a token mixer: among all tokens, and from all tokens to a fixed number of pooled ones.

Shapes: B batch, N tokens in row-major order over the grid, (H, W) grid with H·W = N, D model width, m side of the
grid of pooled tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.linear import Linear
from ..ops.pooling import pool_tokens
from ..utils.checks import check_count


class SelfAttention(nn.Module):
    """Multi-head self-attention, the baseline mixer: tokens (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.out_proj = Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_dim)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class PooledAttention(nn.Module):
    """Multi-head attention from every token to the means of m×m tiles: tokens (B, N, D) -> (B, N, D).

    The whole image is in view at a cost that grows linearly with the number of tokens, because the number of tiles does
    not depend on it. The linear attention of PVT v2 is of this kind (arXiv 2106.13797, Section 3.1). On a grid of m×m
    tokens, and on one whose sides divide m, it is self-attention itself: tiles are those of adaptive pooling, of one
    token each, and tokens that are repeated count as one. The default m is the grid of 256-pixel images in the models
    of patch size 2.

    Args:
        dim: model width D.
        num_heads: number of heads.
        qk_norm: normalise queries and keys per head.
        pool: m.
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False, pool: int = 16):
        super().__init__()
        check_count("attention_pool", pool)
        self.num_heads = num_heads
        self.pool = pool
        self.q_proj = Linear(dim, dim)
        self.kv_proj = Linear(dim, 2 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.out_proj = Linear(dim, dim)

    def extra_repr(self) -> str:
        return f"pool={self.pool}"

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        is_tiled = grid != (self.pool, self.pool)
        pooled = pool_tokens(tokens, grid, self.pool, "grid") if is_tiled else tokens  # (B, m², D)
        q = self.q_proj(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, head_dim)
        kv = self.kv_proj(pooled).unflatten(2, (2, self.num_heads, -1))  # (B, m², 2, heads, head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each (B, heads, m², head_dim)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(y.transpose(1, 2).flatten(2))
