"""The functions that solvers call: the network or the velocity that follows from it, and a callback after each step.

x (B, …) is the state of the solver, t its time.
"""

from collections.abc import Callable

import torch

ModelFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x, t) -> the network's raw output
VelocityFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x, t) -> dx/dt
Callback = Callable[[int, float, torch.Tensor], torch.Tensor | None]  # (step, t, x) -> a new x, or None


def check_output(output: torch.Tensor, x: torch.Tensor) -> None:
    """Raise ValueError unless a network's output has the shape of the state; it would be broadcast otherwise."""
    if output.shape != x.shape:
        raise ValueError(
            f"the network's output has the shape {tuple(output.shape)}, but must have that of the latents, "
            f"{tuple(x.shape)}; use a model with out_channels equal to in_channels (None)"
        )


def _check_replacement(replaced: object, x: torch.Tensor) -> torch.Tensor:
    """Return what a callback put in place of the state x, in its dtype and on its device.

    Raises:
        ValueError: unless it is a tensor of the same shape.
    """
    if not isinstance(replaced, torch.Tensor):
        raise ValueError(f"the callback returned a {type(replaced).__name__} for latents; return a tensor, or None")
    if replaced.shape != x.shape:
        raise ValueError(
            f"the callback returned latents of the shape {tuple(replaced.shape)}, but they must keep the shape "
            f"{tuple(x.shape)}"
        )
    return replaced.to(x)


def after_step(callback: Callback | None, index: int, t: float, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Call the callback with the state after a step.

    Args:
        callback: may return a state that replaces x, change x in place, or raise StopIteration to end the solve, whose
            value, if it has one, is the state to end with.
        index: index of the step, from 0.
        t: time at the end of the step.
        x: the state at that time.

    Returns:
        The state to continue from, and whether the callback asked to stop. The state is the tensor x itself if and
        only if the callback left it unchanged, so that solvers which keep earlier velocities know when to drop them.

    Raises:
        ValueError: if the callback returns something else than a tensor of the shape of x, or None.
    """
    if callback is None:
        return x, False
    # PyTorch counts in-place changes of a tensor, except of tensors that were created in inference mode.
    copy = x.clone() if x.is_inference() else None
    version = None if x.is_inference() else x._version
    try:
        replaced = callback(index, t, x)
    except StopIteration as stop:
        return (x if stop.value is None else _check_replacement(stop.value, x)), True
    if replaced is not None and replaced is not x:
        return _check_replacement(replaced, x), False
    unchanged = x._version == version if copy is None else torch.equal(x, copy)
    return (x if unchanged else x.view_as(x)), False
