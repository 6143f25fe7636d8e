"""The parts of AttNet: stem, gated channel mixer, block and stage.

Shapes: B batch, C channels, (H, W) grid, N = H·W tokens in row-major order, h hidden channels. A stage takes and
returns images (B, C, H, W) in the channels-last layout, which are tokens (B, H, W, C) without a copy; its blocks work
on those.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import checkpoint_seq, register_notrace_module
from torch import nn

from ..ops.linear import Linear
from ..utils.checks import check_choice
from .atconv import ATConv
from .attnet_cpu import run_blocks, run_plainly

ACTIVATIONS: dict[str, tuple[type[nn.Module], str]] = {"GELU": (nn.GELU, "gelu"), "SiLU": (nn.SiLU, "silu")}
GLU_NORM_RULES = ("rms", "variance")
NORM_EPS = 1e-6
LAYER_SCALE_INIT = 1e-6


def hidden_channels(dim: int, exp_rate: float) -> int:
    """Return h of the channel mixer: two thirds of the expanded width, so that three layers cost as much as two."""
    return int(2 * int(dim * exp_rate) / 3)


@register_notrace_module  # its check looks at sizes
class Stem(nn.Module):
    """Two convolutions of stride 2: images (B, in_chans, H, W) -> (B, dim, ⌈H/4⌉, ⌈W/4⌉)."""

    def __init__(self, in_chans: int, dim: int, act_layer: str = "GELU"):
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.act1 = ACTIVATIONS[act_layer][0]()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            check_images(x, self.in_chans)
        x = x.contiguous(memory_format=torch.channels_last)  # and every layer after it stays in this layout
        x = self.act1(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


def check_images(x: torch.Tensor, in_chans: int) -> None:
    """Raise ValueError unless x is a batch of images with these channels and at least one pixel."""
    if x.ndim != 4:
        fault = f"has {x.ndim} axes; images are (batch, channels, height, width)"
    elif x.shape[1] != in_chans:
        fault = f"has {x.shape[1]} channels, the model takes {in_chans}; create it with in_chans={x.shape[1]}"
    elif x.shape[2] == 0 or x.shape[3] == 0:
        fault = "has no pixels; height and width must be at least 1"
    else:
        return
    raise ValueError(f"x of shape {tuple(x.shape)} {fault}")


class GluNorm(nn.Module):
    """RMSNorm over the last axis, with weights and no bias.

    Args:
        dim: number of channels.
        rule: "rms" divides by sqrt(mean(z²) + ε). "variance" divides by sqrt(var(z) + ε) with the unbiased variance, as
            timm's RmsNorm2d, which the reference uses, did in its versions 1.0.10 to 1.0.12.
    """

    def __init__(self, dim: int, rule: str = "rms"):
        super().__init__()
        check_choice("glu_norm_rule", rule, GLU_NORM_RULES)
        self.rule = rule
        self.eps = NORM_EPS  # TorchScript reads no global numbers
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if self.rule == "variance":
            return z * torch.rsqrt(z.var(-1, keepdim=True) + self.eps) * self.weight
        return F.rms_norm(z, [z.shape[-1]], self.weight.to(z.dtype), self.eps)


@register_notrace_module
class GatedMlp(nn.Module):
    """The channel mixer: fc2(norm(act(dwconv(gate)) · value)), on tokens (B, H, W, C).

    The gate and the value have a layer each, where the reference has one for both: half of its output would not be a
    channels-last image, and the depthwise convolution would copy it.
    """

    def __init__(
        self, dim: int, hidden: int, dwconv: bool, norm: bool, act_layer: str, dilation: int, norm_rule: str = "rms"
    ):
        super().__init__()
        self.fc1_g = Linear(dim, hidden)
        self.fc1_x = Linear(dim, hidden)
        self.dwconv = (
            nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden)
            if dwconv
            else nn.Identity()
        )
        self.act = ACTIVATIONS[act_layer][0]()
        self.norm = GluNorm(hidden, norm_rule) if norm else nn.Identity()
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc1_g(x).permute(0, 3, 1, 2)  # (B, h, H, W), channels-last
        gate = self.act(self.dwconv(gate).permute(0, 2, 3, 1))  # (B, H, W, h)
        value = self.fc1_x(x)
        return self.fc2(self.norm(gate * value))


@register_notrace_module
class Block(nn.Module):
    """x + γ₁·ATConv(norm(x)), then x + γ₂·GLU(norm(x)), on tokens (B, H, W, C).

    Args:
        dim: number of channels C.
        hidden: hidden channels of the channel mixer.
        kernel_size: k of ATConv.
        conv_bias: whether ATConv's layers have biases.
        use_layer_scale: whether the branches are scaled by γ₁ and γ₂, which start at 10⁻⁶.
        glu_dconv, glu_norm: whether the channel mixer has a depthwise convolution and RMSNorm.
        act_layer: "GELU" or "SiLU".
        drop_path: probability of leaving out a branch for an image in training; each branch draws its own.
        dilation: of ATConv's kernels and the channel mixer's.
        glu_norm_rule: see `GluNorm`.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        kernel_size: int = 3,
        conv_bias: bool = True,
        use_layer_scale: bool = True,
        glu_dconv: bool = True,
        glu_norm: bool = True,
        act_layer: str = "GELU",
        drop_path: float = 0.0,
        dilation: int = 1,
        glu_norm_rule: str = "rms",
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.token_mixer = ATConv(dim, kernel_size, ACTIVATIONS[act_layer][1], bias=conv_bias, dilation=dilation)
        self.gamma1 = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT)) if use_layer_scale else None
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.channel_mixer = GatedMlp(dim, hidden, glu_dconv, glu_norm, act_layer, dilation, glu_norm_rule)
        self.gamma2 = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT)) if use_layer_scale else None
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        y = self.drop_path1(self.token_mixer(self.norm1(x).reshape(B, H * W, C), (H, W)).reshape(B, H, W, C))
        x = x + y if self.gamma1 is None else torch.addcmul(x, y, self.gamma1)
        y = self.drop_path2(self.channel_mixer(self.norm2(x)))
        return x + y if self.gamma2 is None else torch.addcmul(x, y, self.gamma2)


# The layers of a block, as `run_plainly` knows them.
PLACES: dict[type, dict[str, tuple[type[nn.Module], ...]]] = {
    Block: {
        **dict.fromkeys(("norm1", "norm2"), (nn.LayerNorm,)),
        **dict.fromkeys(("drop_path1", "drop_path2"), (DropPath, nn.Identity)),
        "token_mixer": (ATConv,),
        "channel_mixer": (GatedMlp,),
    },
    ATConv: dict.fromkeys(("kernel_proj", "kernel_gen", "value_proj", "out_proj"), (Linear,)),
    GatedMlp: {
        **dict.fromkeys(("fc1_g", "fc1_x", "fc2"), (Linear,)),
        "dwconv": (nn.Conv2d, nn.Identity),
        "act": (nn.GELU, nn.SiLU),
        "norm": (GluNorm, nn.Identity),
    },
}


class Stage(nn.Module):
    """Downsampling and blocks: (B, C_in, H, W) -> (B, C, ⌈H/2⌉, ⌈W/2⌉).

    Args:
        in_chs: number of channels of the input; equal to `dim` for the first stage, which the stem precedes.
        dim: number of channels C.
        stride: 2; 1 for a stage that keeps the size; 0 for the first stage, which has no downsampling.
        dilation: that of the downsampling convolution.
        blocks: the blocks, of `dim` channels.
    """

    def __init__(self, in_chs: int, dim: int, stride: int, dilation: int, blocks: list[Block]):
        super().__init__()
        self.grad_checkpointing = False
        if stride:
            conv = nn.Conv2d(in_chs, dim, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
            self.downsample: nn.Module = nn.Sequential(conv, nn.BatchNorm2d(dim))
        else:
            self.downsample = nn.Identity()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A view, except after a convolution that did not keep the layout, such as those in float64 on CPUs.
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        elif not torch.jit.is_scripting() and self._run_plainly(x):
            x = self._run_blocks(x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)

    @torch.jit.unused
    def _run_plainly(self, x: torch.Tensor) -> bool:
        return run_plainly(self.blocks, x, Block, PLACES)

    @torch.jit.unused
    def _run_blocks(self, x: torch.Tensor) -> torch.Tensor:
        return run_blocks(self.blocks, x)
