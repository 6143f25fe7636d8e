"""Attention as a token mixer: among all tokens, and from all tokens to a fixed number of pooled ones.

Shapes: B batch, N tokens in row-major order over the grid, (H, W) grid with H·W = N, D model width, m side of the
grid of pooled tokens.
"""

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn
from torch.autograd import forward_ad

from ..ops.linear import Linear
from ..ops.pooling import pool_tokens
from ..utils.checks import check_count


class DispatchedAttention:
    """softmax(q·kᵀ/√head_dim)·v by the attention backend of diffusers that was chosen, for one layer or for all.

    `transformer.set_attention_backend(name)` sets that of each layer; without one, `attention_backend(name)` and the
    environment variable DIFFUSERS_ATTN_BACKEND apply. PyTorch's choice, "native", is the default. The forward-mode
    derivative is always computed by the definition, because no fused kernel has a rule for it.
    """

    _attention_backend: AttentionBackendName | None = None  # diffusers sets it
    _parallel_config = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend from q (B, N, heads, head_dim) to k and v (B, M, heads, head_dim) -> like q."""
        backend = self._attention_backend
        if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
            backend = AttentionBackendName._NATIVE_MATH
        return dispatch_attention_fn(q, k, v, backend=backend)


class _Attention(nn.Module, AttentionModuleMixin):
    """What diffusers may ask of a layer of attention."""

    _supports_qkv_fusion = False  # their projections are as few as they can be
    processor: DispatchedAttention

    def set_processor(self, processor: Any) -> None:
        """Set how queries, keys and values become an output.

        Raises:
            ValueError: if this is not a `DispatchedAttention`, such as the processors of diffusers' own models, which
                expect layers with other names.
        """
        if not isinstance(processor, DispatchedAttention):
            raise ValueError(
                f"processor={type(processor).__name__} is not a DispatchedAttention; choose attention of these models "
                'with transformer.set_attention_backend(name), such as "native" or "flash"'
            )
        super().set_processor(processor)


class SelfAttention(_Attention):
    """Multi-head self-attention, the baseline mixer: tokens (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.out_proj = Linear(dim, dim)
        self.processor = DispatchedAttention()

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, heads, head_dim)
        q, k, v = qkv.unbind(2)  # each (B, N, heads, head_dim)
        y = self.processor(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(y.flatten(2))


class PooledAttention(_Attention):
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
        self.processor = DispatchedAttention()

    def extra_repr(self) -> str:
        return f"pool={self.pool}"

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        is_tiled = grid != (self.pool, self.pool)
        pooled = pool_tokens(tokens, grid, self.pool, "grid") if is_tiled else tokens  # (B, m², D)
        q = self.q_proj(tokens).unflatten(2, (self.num_heads, -1))  # (B, N, heads, head_dim)
        kv = self.kv_proj(pooled).unflatten(2, (2, self.num_heads, -1))  # (B, m², 2, heads, head_dim)
        k, v = kv.unbind(2)  # each (B, m², heads, head_dim)
        y = self.processor(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(y.flatten(2))
