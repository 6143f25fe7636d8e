"""The optimizer of a run: its learning rate at each step."""

import math

from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    if config.lr_schedule == "constant":
        return config.learning_rate * warmup
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
