"""The optimizer of a run: AdamW, its learning rate at each step, and updates that can be masked on the GPU."""

import math

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


def build_optimizer(config: CommonConfig, module: nn.Module) -> torch.optim.AdamW:
    """AdamW over all parameters of a module; fused, because `masked_step` relies on that kernel."""
    return torch.optim.AdamW(module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


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
    """Make AdamW's update if `applied` is 1, and none if it is 0, without waiting for the GPU.

    This is how fused kernels skip overflows of fp16. The gradients must have been unscaled.

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
