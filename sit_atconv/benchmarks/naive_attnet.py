"""AttNet in the layout of its reference, for comparison only: planes (B, C, H, W), 1×1 convolutions as linear layers.

It computes what `AttNet` computes, with parameters of the reference's names (`to_reference` in models/attnet_names.py).

B batch, C channels, (H, W) grid, h hidden channels, t = k² taps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, RmsNorm2d
from torch import nn


class NaiveATConv(nn.Module):
    """The operator; the kernels are made from projected pixels, which are pooled afterwards."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.kernel_size, taps = kernel_size, kernel_size**2
        self.kernel_proj, self.x_proj, self.proj = (nn.Conv2d(dim, dim, 1) for _ in range(3))
        self.kernel_gen = nn.Linear(taps, taps)
        self.difference_control = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        k = self.kernel_size
        pooled = F.adaptive_avg_pool1d(self.kernel_proj(x).flatten(2), k * k)  # (B, C, t)
        kernels = self.kernel_gen(F.gelu(pooled))  # (B, C, t)
        kernels = kernels - self.difference_control.sigmoid()[:, None] * kernels.mean(2, keepdim=True)
        planes = self.x_proj(x).reshape(1, B * C, H, W)
        y = F.conv2d(planes, kernels.reshape(B * C, 1, k, k), padding=k // 2, groups=B * C)
        return self.proj(y.view(B, C, H, W))


class NaiveGlu(nn.Module):
    """The channel mixer."""

    def __init__(self, dim: int, hidden: int, norm: bool):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 2 * hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm_layer = RmsNorm2d(hidden, eps=1e-6) if norm else nn.Identity()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.fc1(x).chunk(2, 1)
        return self.fc2(self.norm_layer(F.gelu(self.dwconv(gate)) * value))


class NaiveScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma[:, None, None]


class NaiveBlock(nn.Module):
    """x + γ₁·ATConv(norm(x)), then x + γ₂·GLU(norm(x))."""

    def __init__(self, dim: int, hidden: int, kernel_size: int, scale: bool, norm: bool):
        super().__init__()
        self.norm_1, self.norm_2 = LayerNorm2d(dim, eps=1e-6), LayerNorm2d(dim, eps=1e-6)
        self.token_mixer, self.channel_mixer = NaiveATConv(dim, kernel_size), NaiveGlu(dim, hidden, norm)
        self.layer_scale_1, self.layer_scale_2 = (NaiveScale(dim) if scale else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.layer_scale_1(self.token_mixer(self.norm_1(x)))
        return x + self.layer_scale_2(self.channel_mixer(self.norm_2(x)))


class NaiveAttNet(nn.Module):
    """The network for inference, with depthwise convolutions, biases and GELU everywhere, as in the published sizes.

    Args:
        depths, dims, kernel_sizes: as for `AttNet`, one value per stage.
        hidden: hidden channels of each stage's channel mixers.
        use_layer_scale: as for `AttNet`.
        glu_norm: whether the channel mixers have RMSNorm.
        num_classes: number of classes.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        hidden: Sequence[int],
        kernel_sizes: Sequence[int] = (3, 3, 3, 3),
        use_layer_scale: bool = True,
        glu_norm: bool = True,
        num_classes: int = 1000,
    ):
        super().__init__()
        half = dims[0] // 2
        stem = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half)),
            nn.GELU(),
            nn.Sequential(nn.Conv2d(half, dims[0], 3, 2, 1, bias=False), nn.BatchNorm2d(dims[0])),
        )
        steps = [
            nn.Sequential(nn.Conv2d(dims[i], dims[i + 1], 3, 2, 1, bias=False), nn.BatchNorm2d(dims[i + 1]))
            for i in range(3)
        ]
        self.downsample_layers = nn.ModuleList([stem, *steps])
        self.stages = nn.ModuleList(
            nn.Sequential(*(NaiveBlock(dim, h, k, use_layer_scale, glu_norm) for _ in range(depth)))
            for depth, dim, h, k in zip(depths, dims, hidden, kernel_sizes, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-5)
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))
