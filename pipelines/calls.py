"""The state of one call of a pipeline, so that calls in several threads do not meet in it, and its callback.

diffusers' callbacks read and write attributes of the pipeline: `_interrupt`, `_guidance_scale`, `num_timesteps`. Here
they belong to the call that runs in the same thread.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sit_atconv.flow.guidance import GuidedModel
from sit_atconv.models.finite import NotFiniteError, check_finite, not_finite_error


@dataclasses.dataclass(eq=False)
class CallState:
    """What callbacks can ask of a call, and change."""

    num_timesteps: int = 0
    guidance_scale: float = 1.0
    interrupted: bool = False


class PipelineCalls:
    """The calls of a pipeline that are running, in any thread, and the last call of each thread."""

    def __init__(self):
        self._running: list[CallState] = []
        self._thread = threading.local()
        self._latest = CallState()

    def __reduce__(self):
        return PipelineCalls, ()  # a copy of a pipeline has no calls

    def _own(self) -> list[CallState]:
        """The running calls of this thread; the last one is that whose callback runs."""
        if not hasattr(self._thread, "running"):
            self._thread.running = []
        return self._thread.running

    @property
    def current(self) -> CallState:
        """The call that runs in this thread; if there is none, the last one that did, or the last of any thread."""
        running = self._own()
        return running[-1] if running else getattr(self._thread, "last", self._latest)

    @contextmanager
    def running(self, num_timesteps: int, guidance_scale: float) -> Iterator[CallState]:
        """Begin a call in this thread, and end it."""
        call = CallState(num_timesteps, guidance_scale)
        self._own().append(call)
        self._running.append(call)
        try:
            yield call
        finally:
            self._own().remove(call)
            self._running.remove(call)
            self._thread.last = self._latest = call

    def interrupt(self, value: bool) -> None:
        """Interrupt the call that runs in this thread; if there is none, all running calls, as a stop button does."""
        for call in self._own()[-1:] or [*self._running, self.current]:
            call.interrupted = value


class CallStateMixin:
    """The attributes of a pipeline under which diffusers' callbacks read and change the state of a call."""

    @functools.cached_property
    def _calls(self) -> PipelineCalls:
        return PipelineCalls()

    @property
    def num_timesteps(self) -> int:
        """The number of solver steps of this call."""
        return self._calls.current.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether this call was asked to stop: set `pipe._interrupt = True` in a callback to stop after this step."""
        return self._calls.current.interrupted

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._calls.interrupt(value)

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of this call; a callback may set `pipe._guidance_scale` for the steps that follow."""
        return self._calls.current.guidance_scale

    @property
    def _guidance_scale(self) -> float:
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        self._calls.current.guidance_scale = scale


def check_callback(callback: Any, tensor_inputs: list[str]) -> None:
    """Raise ValueError if `callback_on_step_end` cannot be called, or needs tensors that the pipeline does not have."""
    if callback is None:
        return
    if not callable(callback):
        raise ValueError(f"callback_on_step_end={callback!r} cannot be called; give a function, or None")
    if unknown := [name for name in getattr(callback, "tensor_inputs", ()) if name not in tensor_inputs]:
        raise ValueError(
            f"callback_on_step_end={type(callback).__name__} needs {', '.join(unknown)}, but this pipeline has only "
            f"{', '.join(tensor_inputs)}; to guide early steps alone, use guidance_interval=(0.0, end)"
        )


class StepCallback:
    """What a pipeline does after each step of its solver: it shows progress, checks numbers, and calls the caller.

    Args:
        pipeline: what `callback_on_step_end` gets first.
        call: the state of this call.
        model_fn: the guided model, whose guidance follows `call.guidance_scale`.
        progress: the progress bar.
        is_adaptive: whether the progress bar shows time, not steps.
        callback_on_step_end: see `SiTPipeline.__call__`.
        keep: (t, latents) -> what becomes of the latents before anyone else sees them; None for what they are.
    """

    def __init__(
        self,
        pipeline: Any,
        call: CallState,
        model_fn: GuidedModel,
        progress: Any,
        is_adaptive: bool,
        callback_on_step_end: Callable | None,
        keep: Callable[[float, torch.Tensor], torch.Tensor] | None = None,
    ):
        self.pipeline = pipeline
        self.call = call
        self.model_fn = model_fn
        self.progress = progress
        self.is_adaptive = is_adaptive
        self.callback_on_step_end = callback_on_step_end
        self.keep = keep

    def __call__(self, step: int, t: float, x: torch.Tensor) -> torch.Tensor | None:
        """Return latents that replace x, or None; StopIteration with the latents, or None, ends the solve."""
        self.progress.set_postfix_str(f"t={t:.3f}", refresh=False)
        if self.is_adaptive:
            self.progress.n = round(t, 3)  # of the time, which is what the bar shows
            self.progress.update(0)
        else:
            self.progress.update(1)
        if step == 0:  # before a long solve goes on in vain
            check_finite("the latents after the first step", x, *self.model_fn.models)
        latents = kept = None if self.keep is None else self.keep(t, x)
        if (callback := self.callback_on_step_end) is not None:
            changed = self._call_back(callback, step, t, x if kept is None else kept)
            latents = kept if changed is None else changed
        if self.call.interrupted:
            raise StopIteration(latents)
        return latents

    def _call_back(self, callback: Callable, step: int, t: float, x: torch.Tensor) -> torch.Tensor | None:
        tensors = {"latents": x}
        if "prompt_embeds" in getattr(callback, "tensor_inputs", ()):
            tensors["prompt_embeds"] = self.model_fn.model.labels  # what stands for the prompt here
        scale = self.call.guidance_scale
        changed = callback(self.pipeline, step, t, tensors)
        if self.call.guidance_scale != scale:
            self._set_guidance_scale(self.call.guidance_scale)
        if changed is None:
            return None
        if not isinstance(changed, dict):
            raise ValueError(
                f"callback_on_step_end returned a {type(changed).__name__}; return a dictionary, such as "
                "{'latents': latents}, or None"
            )
        if unknown := [name for name in changed if name not in ("latents", "prompt_embeds")]:
            names = ", ".join(map(str, unknown))
            raise ValueError(f"callback_on_step_end returned {names}; only latents can be replaced")
        return changed.get("latents")

    def _set_guidance_scale(self, scale: float) -> None:
        """Guide with another scale from now on; as in diffusers, a callback switches guidance off with 1 or less."""
        guidance = self.model_fn.guidance
        if scale <= 1:
            guidance = dataclasses.replace(guidance, scale=1.0, guider=None)
        elif guidance.guider is not None:
            raise ValueError(
                f"_guidance_scale={scale} in a callback: the guider of this call has a scale of its own; 1 or less "
                "switches it off"
            )
        else:
            guidance = dataclasses.replace(guidance, scale=scale)
        if guidance.is_active and not self.model_fn.can_guide:
            raise ValueError(
                f"_guidance_scale={scale} in a callback: this call began without guidance; call the pipeline with a "
                "guidance_scale other than 1"
            )
        self.model_fn.guidance = guidance


def solve_finite(scheduler: Any, model_fn: GuidedModel, x: torch.Tensor, steps: int, **options: Any) -> torch.Tensor:
    """Solve from x with `scheduler.solve`; raise NotFiniteError, with the reason, unless the result is finite."""
    try:
        result = scheduler.solve(model_fn, x, steps, **options)
    except NotFiniteError as error:
        raise not_finite_error("the network's outputs", *model_fn.models, row=error.row) from error
    check_finite("the latents", result, *model_fn.models)
    return result
