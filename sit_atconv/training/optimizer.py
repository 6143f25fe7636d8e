"""The optimizer of a run, its learning rate at each step, and updates that can be masked on the GPU."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from .config import CommonConfig


def learning_rate(config: CommonConfig, step: int, stage: int = 0) -> float:
    """The learning rate of update `step`, counted from 0.

    Args:
        config: the configuration of the run.
        step: the update.
        stage: number of first updates that have a schedule of their own, without a warm-up.
    """
    steps, warmup = config.max_steps - stage, 1.0
    if step < stage:
        steps = stage
    else:
        step -= stage
        warmup = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    if config.lr_schedule == "constant":
        return config.learning_rate * warmup
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def muon_matrices(blocks: nn.Module) -> list[nn.Parameter]:
    """The parameters of a transformer's blocks that Muon updates: its matrices (out, in)."""
    # A map to kernels for each group of channels has a bias of two axes, which is no matrix.
    return [weight for name, weight in blocks.named_parameters() if weight.ndim == 2 and not name.endswith("bias")]


def build_optimizer(
    config: CommonConfig, module: nn.Module, matrices: Sequence[nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """AdamW over all parameters of a module; fused, because `masked_step` relies on that kernel.

    Args:
        config: the configuration of the run.
        module: what is trained.
        matrices: its parameters (out, in) that Muon updates. If None, AdamW updates all of them.
    """
    lr, weight_decay = config.learning_rate, config.weight_decay
    if matrices is None:
        return torch.optim.AdamW(module.parameters(), lr, weight_decay=weight_decay, fused=True)
    chosen = set(map(id, matrices))
    return MuonWithAdamW(matrices, [p for p in module.parameters() if id(p) not in chosen], lr, weight_decay)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for matrices, and AdamW for other parameters, as one optimizer.

    An update of Muon is the momentum with all its singular values set to about 1, scaled so that its root mean square
    is that of AdamW's updates (arXiv 2502.16982): both take one learning rate.

    Args:
        matrices: parameters (out, in).
        others: all other parameters.
        lr: learning rate.
        weight_decay: weight decay, decoupled from the gradient.

    Attributes:
        grad_scale, found_inf: as PyTorch's fused optimizers take them; if `found_inf` is 1, a step changes nothing.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    def __init__(
        self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], lr: float, weight_decay: float
    ):
        self._muon = torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw: Any = torch.optim.AdamW(others, lr, weight_decay=weight_decay, fused=True)
        groups = [*self._muon.param_groups, *self._adamw.param_groups]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Make an update, or none if `found_inf` is 1, without waiting for the GPU; `closure` must be None."""
        assert closure is None and self.grad_scale is None  # gradients have been computed and unscaled
        for part, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]  # loading a state has replaced them
        self._adamw.found_inf = self.found_inf
        self._adamw.step()
        if self.found_inf is None:
            self._muon.step()
            return
        # Muon has no flag: a masked gradient is the momentum, which leaves that as it is, and weights are put back.
        keep = self.found_inf.bool()
        weights = [weight for weight in self.param_groups[0]["params"] if weight.grad is not None]
        before = [weight.clone() for weight in weights]
        for weight in weights:
            momentum = self.state[weight].get("momentum_buffer", torch.zeros_like(weight))
            weight.grad = torch.where(keep, momentum, weight.grad)
        self._muon.step()
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(torch.where(keep, old, weight))


def set_sharded_precision(accelerator: Accelerator) -> None:
    """Let FSDP2 keep inputs, above all times, and the sum of gradients in float32, as DDP does."""
    if not accelerator.is_fsdp2 or accelerator.mixed_precision == "no":
        return
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def masked_step(optimizer: AcceleratedOptimizer, applied: torch.Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """Make an update if `applied` is 1, and none if it is 0, without waiting for the GPU.

    This is how AdamW's fused kernels skip overflows of fp16. The gradients must have been unscaled.

    Args:
        optimizer: the prepared optimizer.
        applied: () 1 or 0, on the device of the parameters.
        scaler: loss scaler of fp16, which is updated; None otherwise.
    """
    fused = optimizer.optimizer
    fused.grad_scale, fused.found_inf = None, 1 - applied
    fused.step()
    if scaler is not None:
        scaler.update()
