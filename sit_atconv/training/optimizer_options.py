"""The options of the updates of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..utils.checks import check_choice, check_count, check_float32, check_non_negative, check_positive, check_seed

OPTIMIZERS = ("adamw", "muon")


@dataclass
class OptimizerConfig:
    """Optimizer

    Args:
        max_steps: number of optimizer updates in the whole run.
        batch_size: number of images per update, over all processes and accumulation steps.
        gradient_accumulation_steps: number of parts in which a process works through its images of an update, to save
            memory.
        learning_rate: learning rate after the warm-up.
        lr_warmup_steps: number of updates over which the learning rate grows linearly from 0.
        lr_schedule: learning rate after the warm-up: constant, or a cosine that reaches 0 at max_steps.
        weight_decay: weight decay, decoupled from the gradient.
        max_grad_norm: norm to which gradients are clipped. If null, they are left as they are. The norm is always
            logged.
        max_skipped_steps: number of skipped steps in a row after which the run stops. A step is skipped if its loss or
            gradient is not finite. With fp16, a few are skipped at the start, while the loss scale is adjusted.
        seed: seed of everything random in the run.
    """

    max_steps: int = 1600
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    lr_warmup_steps: int = 100
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    max_skipped_steps: int = 20
    seed: int = 0


@dataclass
class SiTOptimizerConfig(OptimizerConfig):
    """Optimizer

    `OptimizerConfig` describes the other options, in --help as well.

    Args:
        optimizer: adamw; or muon, which makes the updates of the matrices of the blocks orthogonal, with AdamW for all
            other parameters. Both take the same learning rate.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"


def check_optimizer(options: Mapping[str, Any]) -> None:
    """Check the options of a run, by name.

    Raises:
        ValueError: for values that no run can use.
    """
    for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "max_skipped_steps"):
        check_count(name, options[name])
    check_seed("seed", options["seed"])
    check_positive("learning_rate", options["learning_rate"])
    if options["max_grad_norm"] is not None:
        check_positive("max_grad_norm", options["max_grad_norm"])
    check_non_negative("weight_decay", options["weight_decay"])
    for name in ("learning_rate", "weight_decay"):
        check_float32(name, options[name])
    check_count("lr_warmup_steps", options["lr_warmup_steps"], least=0)
    check_choice("optimizer", options.get("optimizer", "adamw"), OPTIMIZERS)
