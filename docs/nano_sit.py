"""The whole method in one file: SiT with ATConv learns handwritten digits. `python docs/nano_sit.py` writes nano.png.

This file is for reading: plain PyTorch, nothing from the package, no options. The package does the same with presets,
an EMA, any solver, any size, any number of processes and a faster operator. It takes a few minutes on a CPU.

B images, N tokens on a grid (H, W), D channels; t=0 noise, t=1 data.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ATConv(nn.Module):
    """Attentive Convolution (arXiv 2510.20092): mix tokens with a 3×3 convolution whose kernels come from the image."""

    def __init__(self, dim: int, k: int = 3):
        super().__init__()
        self.k = k
        self.kernel_proj, self.kernel_gen = nn.Linear(dim, dim), nn.Linear(k * k, k * k)
        self.value_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.inhibition = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        B, _, D = x.shape
        context = F.adaptive_avg_pool1d(x.mT, self.k**2).mT  # (B, k², D): the image in k² tokens
        g = F.gelu(self.kernel_proj(context), approximate="tanh")
        kernels = self.kernel_gen(g.mT)  # (B, D, k²): adaptive routing, one kernel per image and channel
        kernels = kernels - self.inhibition.sigmoid()[:, None] * kernels.mean(-1, keepdim=True)  # lateral inhibition
        values = self.value_proj(x).mT.reshape(1, B * D, *grid)
        y = F.conv2d(values, kernels.reshape(B * D, 1, self.k, self.k), padding=self.k // 2, groups=B * D)
        return self.out_proj(y.view(B, D, -1).mT)


class Block(nn.Module):
    """A transformer block with adaLN-zero: time and class shift, scale and gate both halves (arXiv 2212.09748)."""

    def __init__(self, dim: int):
        super().__init__()
        self.mixer = ATConv(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)  # every block starts as the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self.mixer(F.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1, grid)
        return x + gate2 * self.mlp(F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2)


class SiT(nn.Module):
    """Predicts the velocity of the flow from noise to data, for images (B, 1, 8, 8)."""

    def __init__(self, dim: int = 96, depth: int = 6, patch: int = 2, classes: int = 10):
        super().__init__()
        self.null_class = classes  # the extra class "none", for classifier-free guidance
        self.patchify = nn.Conv2d(1, dim, patch, patch)
        self.time_embed = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.class_embed = nn.Embedding(classes + 1, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.unpatchify = nn.ConvTranspose2d(dim, 1, patch, patch)
        nn.init.zeros_(self.unpatchify.weight)
        self.register_buffer("frequencies", 1000 * 10000 ** -torch.linspace(0, 1, 32))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        x = self.patchify(x)
        grid = x.shape[2:]
        angles = t[:, None] * self.frequencies
        condition = F.silu(self.time_embed(torch.cat([angles.cos(), angles.sin()], 1)) + self.class_embed(label))
        x = x.flatten(2).mT  # (B, N, D)
        for block in self.blocks:
            x = block(x, condition, grid)
        return self.unpatchify(F.layer_norm(x, x.shape[-1:]).mT.unflatten(2, grid))


def flow_loss(model: SiT, x_1: Tensor, label: Tensor) -> Tensor:
    """On the straight line x_t = t·data + (1−t)·noise, the velocity is data − noise (arXiv 2401.08740)."""
    x_0, t = torch.randn_like(x_1), torch.rand(len(x_1))
    label = torch.where(torch.rand(len(label)) < 0.1, model.null_class, label)  # sometimes forget the class
    x_t = torch.lerp(x_0, x_1, t[:, None, None, None])
    return F.mse_loss(model(x_t, t, label), x_1 - x_0)


@torch.no_grad()
def sample(model: SiT, label: Tensor, steps: int = 25, guidance_scale: float = 1.5) -> Tensor:
    """Follow the velocity from noise to data with Euler's method and classifier-free guidance."""
    x = torch.randn(len(label), 1, 8, 8)
    for i in range(steps):
        t = torch.full((len(label),), i / steps)
        cond, uncond = model(x, t, label), model(x, t, torch.full_like(label, model.null_class))
        x = x + (uncond + guidance_scale * (cond - uncond)) / steps
    return x


def train(model: SiT, images: Tensor, labels: Tensor, steps: int, batch_size: int = 64) -> float:
    """Minimise the loss with AdamW and a cosine schedule; return the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    for step in range(steps):
        batch = torch.randint(len(images), (batch_size,))
        loss = flow_loss(model, images[batch], labels[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    from sklearn.datasets import load_digits
    from torchvision.utils import save_image

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8) in [−1, 1]
    model = SiT()
    train(model, images, torch.tensor(digits.target), steps=1600)
    grid = sample(model, torch.arange(10).repeat_interleave(8)) / 2 + 0.5
    save_image(F.interpolate(grid.clamp(0, 1), scale_factor=4), "nano.png", nrow=8)
