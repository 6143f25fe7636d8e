"""The processes of a run: how they start together, and work that one of them does for all."""

import os
import re
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list

from .config import CommonConfig
from .trackers import trackers

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)  # until a process gives up on the others: the main one may be writing a large checkpoint


# What accelerate takes from the environment, and this training does not support.
REFUSED = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_FP8_BACKEND",
)
OFF = ("", "0", "no", "false")
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def check_launch() -> None:
    """Check what a launcher such as torchrun says in the environment, which accelerate reads unchecked.

    Raises:
        ValueError: naming the variable.
    """
    for name in LAUNCHER:
        if name in os.environ and not re.fullmatch("[0-9]{1,9}", os.environ[name].strip()):
            raise ValueError(
                f"{name}={os.environ[name]!r} in the environment must be a whole number; unset it, unless a launcher "
                "such as torchrun sets it"
            )
    device = os.environ.get("ACCELERATE_TORCH_DEVICE", "")
    if device.partition(":")[0] == "meta":
        raise ValueError(f"ACCELERATE_TORCH_DEVICE={device} is no device to compute on; unset it")


def join_processes(**options: Any) -> Accelerator:
    """Join the processes of the command, on the accelerator of each or on the CPU.

    Args:
        **options: as for `Accelerator`.

    Raises:
        ValueError: naming the environment variables that ask for something that is not supported, or make no sense.
    """
    check_launch()
    for name in REFUSED:
        if os.environ.get(name, "").lower() not in OFF:
            raise ValueError(
                f"{name}={os.environ[name]} is not supported; unset it, or choose a configuration of accelerate "
                "without it, such as train/configs/accelerate/ddp_8gpus.yaml"
            )
    try:
        # On CPUs, the processes of torchrun find each other only with cpu=True.
        return Accelerator(cpu=not torch.accelerator.is_available(), **options)
    except (ValueError, RuntimeError, ImportError) as error:
        if not (read := [f"{name}={value}" for name, value in os.environ.items() if name.startswith("ACCELERATE_")]):
            raise
        raise ValueError(
            f"accelerate cannot start with {', '.join(sorted(read))} in the environment: {error}"
        ) from error


def start_accelerator(config: CommonConfig) -> Accelerator:
    """Join the processes of the run, on the accelerator of each or on the CPU.

    Accelerate also reads environment variables, which its launcher sets from a configuration that may be forgotten.
    Those that would change the training beside its options have no effect, or are refused.

    Raises:
        ValueError: as `join_processes`.
    """
    accelerator = join_processes(
        # Given here, so that ACCELERATE_GRADIENT_ACCUMULATION_STEPS and ACCELERATE_DYNAMO_BACKEND have no effect: the
        # options gradient_accumulation_steps and compile alone decide.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        mixed_precision=config.mixed_precision,
        log_with=trackers(config) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if accelerator.num_processes == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        warnings.warn(
            "on CPUs, accelerate's launcher starts a single process whatever --num_processes says; for several, use "
            "torchrun --nproc_per_node N train/train_sit.py",
            stacklevel=2,
        )
    return accelerator


def one_process_first(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Run `function` on one process per machine first, then on the others, which find what the first one has cached."""
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        return function()
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def on_main_process(accelerator: Accelerator | PartialState, function: Callable[[], T]) -> T:
    """Run `function` on the main process and return its result on all processes. If it fails, all of them raise.

    Raises:
        Exception: on the main process, whatever `function` raises.
        ValueError, OSError, RuntimeError: on the other processes, with the same message. The type is that of the
            original error if that is a ValueError or an OSError, and RuntimeError otherwise.
    """
    outcome: list[Any] = [None, None]
    failure = None
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:  # whatever it is, the other processes are waiting
            failure = error
            kind = next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), RuntimeError)
            outcome[1] = kind(str(error))  # not every error can be pickled
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise failure or outcome[1]
    return outcome[0]
