"""Work that one process does for all: the others wait for it, and learn if it fails."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def one_process_first(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Run `function` on one process of each machine, then on the others, which find what the first one has cached."""
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        return function()
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def on_main_process(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Run `function` on the main process and return its result on all of them; where it fails, none goes on.

    Raises:
        Exception: on the main process, as `function`.
        ValueError, OSError, RuntimeError: on its peers, with that message: the first two as `function`, else the third.
    """
    outcome: list = [None, None]
    failure = None
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:  # whatever it is, the others wait for it
            failure = error
            kind = next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), RuntimeError)
            outcome[1] = kind(str(error))  # not every error can be sent
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise failure or outcome[1]
    return outcome[0]
