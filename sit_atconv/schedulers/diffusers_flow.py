"""diffusers' own flow-matching schedulers, behind the interface of this package's schedulers.

Their sigma is 1 − t and their velocity is noise − data: both are converted here, and nowhere else.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch

from ..flow.callbacks import Callback, ModelFn, VelocityFn, after_step, check_output
from ..flow.interpolants import Interpolant

FLOW_OPTIONS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# Options that replace a grid of flow matching by one of another kind, or leave noise at its end, and their values that
# do not.
GRID_OPTIONS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "rescale_betas_zero_snr": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
}
WORKING = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "DPMSolverMultistep", "UniPCMultistep")
FIRST_SIGMA = 0.98  # at least: the latents are pure noise; diffusers' solvers of diffusion models start at 0.999
# How dynamic shifting depends on the number of tokens, if the scheduler's config does not say, as in diffusers.
DYNAMIC_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
CHECKED = 256
_checked: dict[tuple, None] = {}  # the last schedulers and numbers of steps that led to the data


class UnfitSchedulerError(ValueError):
    """Why a scheduler cannot be used, to follow its name; the advice is still to be added."""


class DiffusersFlowScheduler:
    """One solve with a flow-matching scheduler of diffusers; works on a copy, so that calls do not meet in its state.

    Args:
        scheduler: a `FlowMatch…Scheduler`, or another one with `use_flow_sigmas=True` and
            `prediction_type="flow_prediction"`. If its config names a `path` and a `prediction`, as one that was made
            by `from_config` of this package's schedulers does, the model's outputs are converted accordingly.
        num_tokens: the number of tokens of an image, on which dynamic shifting depends.

    Raises:
        ValueError: if the scheduler is not set up for flow matching, draws random numbers without a generator, or the
            path is not linear, or the noise not of scale 1. The grid itself is judged once the number of steps is
            known: see `solve`.
    """

    is_adaptive = False

    def __init__(self, scheduler: Any, num_tokens: int = 256):
        self.scheduler = copy.deepcopy(scheduler)
        self.num_tokens = num_tokens
        config, name = scheduler.config, type(scheduler).__name__
        self.interpolant = Interpolant(config.get("path", "linear"), config.get("prediction", "velocity"))
        if self.interpolant.path != "linear":
            raise ValueError(
                f"path={self.interpolant.path!r}: diffusers' flow schedulers support the linear path only; use "
                f"InterpolantODEScheduler.from_config(pipe.scheduler.config) in place of {name}"
            )
        if (scale := config.get("noise_scale", 1)) != 1:
            raise ValueError(
                f"noise_scale={scale}: diffusers' flow schedulers know noise of scale 1 only; use "
                f"InterpolantODEScheduler.from_config(pipe.scheduler.config) in place of {name}"
            )
        if config.get("stochastic_sampling"):
            raise ValueError(
                f"{name}: stochastic_sampling draws without a generator; use "
                "InterpolantSDEScheduler.from_config(config), with config = pipe.scheduler.config"
            )
        if not _is_set_up(scheduler):
            raise ValueError(f"scheduler {name} is not set up for flow matching; {remedy(scheduler)}")

    def network_times(self, num_inference_steps: int) -> list[float]:
        """The times of the network calls of `solve`, in order, for its conditioning to be computed ahead.

        Raises:
            ValueError: if the scheduler's grid is not one of flow matching.
        """
        with self._advising(num_inference_steps):
            return self._network_times(self._set_times(num_inference_steps)).tolist()

    def solve(
        self,
        model_fn: ModelFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """Sample from noise (B, C, H, W), float32; arguments as those of `InterpolantODEScheduler.solve`.

        Raises:
            ValueError: if the scheduler's grid is not one of flow matching: finite, falling, within [0, 1], from noise
                to sigma 0.
        """

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            output = model_fn(x, t)
            check_output(output, x)
            return self.interpolant.to_velocity(output, x, t)

        self.check(num_inference_steps)
        return self._integrate(velocity, latents, num_inference_steps, generator, callback)

    def check(self, num_inference_steps: int) -> None:
        """Raise ValueError unless a solve leads to the data, if all the data is one image.

        Then x_t is a mixture of noise and this image, and every sampler, with noise or without, ends exactly at it.
        """
        with self._advising(num_inference_steps):
            self._try(num_inference_steps)

    def _try(self, num_inference_steps: int) -> None:
        """The trial of `check`; an `UnfitSchedulerError` says what went wrong."""
        key = (type(self.scheduler), str(self.scheduler.config), self.num_tokens, num_inference_steps)
        if key in _checked:
            return
        image = torch.full((1, 1, 1, 1), 0.5)

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return (image - x) / (1 - t).clamp(min=1e-4)

        trial = DiffusersFlowScheduler(self.scheduler, self.num_tokens)
        trial._set_times(num_inference_steps)
        try:
            generator = torch.Generator().manual_seed(0)
            result = trial._integrate(velocity, -torch.ones_like(image), num_inference_steps, generator, None)
        except Exception as error:
            raise UnfitSchedulerError(_stumble(error, num_inference_steps)) from error
        if result.shape != image.shape or not (result - image).abs() < 1e-2:
            raise UnfitSchedulerError(f"ends at {result.flatten()[0]:.3g} where the data is {image.item():.3g}")
        _checked[key] = None
        if len(_checked) > CHECKED:
            _checked.pop(next(iter(_checked)), None)

    def _integrate(
        self,
        velocity_fn: VelocityFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callback | None,
    ) -> torch.Tensor:
        scheduler = self.scheduler
        times = self._set_times(num_inference_steps, latents.device)
        options = {"generator": generator} if _accepts(scheduler.step, "generator") else {}
        for i, (t, timestep) in enumerate(zip(self._network_times(times), scheduler.timesteps, strict=True)):
            velocity = velocity_fn(latents, t)
            latents = scheduler.step(-velocity, timestep, latents, return_dict=False, **options)[0]
            t_next = times[min(i + 1, len(times) - 1)].item()
            latents, stopped = after_step(callback, i, t_next, latents)
            if stopped:
                return latents
        return latents

    def _set_times(self, num_inference_steps: int, device: torch.device | None = None) -> torch.Tensor:
        """Set the scheduler's timesteps; return the times t that they stand for, and the last step's end, float32."""
        options: dict[str, Any] = {}
        if _accepts(self.scheduler.set_timesteps, "sigmas"):
            options["sigmas"] = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        if self.scheduler.config.get("use_dynamic_shifting") and _accepts(self.scheduler.set_timesteps, "mu"):
            options["mu"] = dynamic_shift(self.scheduler.config, self.num_tokens)
        try:
            self.scheduler.set_timesteps(num_inference_steps, device=device, **options)
        except Exception as error:
            raise UnfitSchedulerError(_stumble(error, num_inference_steps)) from error
        sigmas = torch.as_tensor(getattr(self.scheduler, "sigmas", ())).to("cpu", torch.float32)
        if reason := fault_of_grid(sigmas, len(self.scheduler.timesteps)):
            raise UnfitSchedulerError(reason)
        return 1 - sigmas  # timesteps may be rounded to whole numbers

    def _network_times(self, times: torch.Tensor) -> torch.Tensor:
        """The times of the network calls: those of `_set_times` where the prediction is finite."""
        interval = self.interpolant.time_interval(self.interpolant.default_eps(training=False))
        return times[: len(self.scheduler.timesteps)].clamp(*interval)

    @contextmanager
    def _advising(self, num_inference_steps: int) -> Iterator[None]:
        """Add to an `UnfitSchedulerError` which scheduler it is about, and what to use in its place."""
        try:
            yield
        except UnfitSchedulerError as fault:
            advice = remedy(self.scheduler, num_inference_steps)
            raise ValueError(f"scheduler {type(self.scheduler).__name__} {fault}; {advice}") from fault


def checked_solver(scheduler: Any, num_inference_steps: int, num_tokens: int) -> Any:
    """Return what solves with a scheduler: itself if it is one of this package, else a `DiffusersFlowScheduler`.

    Raises:
        ValueError: if a scheduler of diffusers is none for flow matching, or not with this number of steps.
    """
    check_scheduler(scheduler)
    if hasattr(scheduler, "solve"):
        return scheduler
    solver = DiffusersFlowScheduler(scheduler, num_tokens)
    solver.check(num_inference_steps)
    return solver


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError unless this is a scheduler, of this package or of diffusers; a name of a solver is none."""
    if isinstance(scheduler, type) or not (hasattr(scheduler, "config") and hasattr(scheduler, "set_timesteps")):
        shown = repr(scheduler) if isinstance(scheduler, str) else f"a {type(scheduler).__name__}"
        raise ValueError(f"scheduler is {shown}; give a scheduler, such as InterpolantODEScheduler(solver='heun')")


def fault_of_grid(sigmas: torch.Tensor, num_calls: int) -> str | None:
    """What keeps sigmas (num_calls + 1,) from being a grid of flow matching, to follow a scheduler's name; or None."""
    if len(sigmas) != num_calls + 1:
        return f"has {len(sigmas)} sigmas for {num_calls} network calls, and not one more"
    if not sigmas.isfinite().all():
        return f"has sigmas that are not finite: {_shown(sigmas)}"
    if sigmas.min() < 0 or sigmas.max() > 1 + 1e-5:
        return f"has sigmas outside [0, 1]: {_shown(sigmas)}"
    if (sigmas.diff() > 0).any():
        return f"has sigmas that do not fall: {_shown(sigmas)}"
    if sigmas[0] < FIRST_SIGMA:
        return f"starts at sigma={sigmas[0]:.3g}, but the latents are pure noise, sigma=1"
    if sigmas[-1] > 0:
        return f"stops at sigma={sigmas[-1]:.3g}, which leaves that much noise in the images"
    return None


def _stumble(error: Exception, num_inference_steps: int) -> str:
    said = str(error)
    return f"cannot make {num_inference_steps} steps ({said if said not in ('', 'None') else type(error).__name__})"


def _shown(sigmas: torch.Tensor) -> str:
    numbers = [f"{sigma:.3g}" for sigma in sigmas.tolist()]
    return ", ".join(numbers if len(numbers) < 7 else [*numbers[:3], "…", *numbers[-3:]])


def remedy(scheduler: Any, num_inference_steps: int = 10) -> str:
    """Advice in place of a scheduler that cannot be used: the same with other options if that works, or another one.

    The first is tried with this number of steps before it is named.
    """
    scheduler_class = type(scheduler)
    known = inspect.signature(scheduler_class.__init__).parameters
    options = {name: value for name, value in FLOW_OPTIONS.items() if name in known}
    changed = {
        name: value
        for name, value in GRID_OPTIONS.items()
        if name in known and scheduler.config.get(name, value) != value
    }
    source = "with config = pipe.scheduler.config"
    working = f"schedulers of diffusers that work: {', '.join(WORKING)}"
    arguments = "".join(f", {name}={value!r}" for name, value in {**options, **changed}.items())
    make = functools.partial(scheduler_class.from_config, scheduler.config, **options, **changed)
    if arguments and _works(make, num_inference_steps):
        return f"use {scheduler_class.__name__}.from_config(config{arguments}), {source}; {working}"
    other = diffusers.FlowMatchEulerDiscreteScheduler
    reset = {
        name: value
        for name, value in {**GRID_OPTIONS, "use_dynamic_shifting": False, "shift_terminal": None, "shift": 1.0}.items()
        if name in inspect.signature(other.__init__).parameters and scheduler.config.get(name, value) != value
    }
    arguments = "".join(f", {name}={value!r}" for name, value in reset.items())
    return (
        f"use InterpolantODEScheduler.from_config(config), or {other.__name__}.from_config(config{arguments}), "
        f"{source}; {working} (the last two with use_flow_sigmas=True, prediction_type='flow_prediction')"
    )


def _is_set_up(scheduler: Any) -> bool:
    """Whether the options of a scheduler are those of flow matching."""
    config = scheduler.config
    flags = (config.get("prediction_type", "flow_prediction"), config.get("use_flow_sigmas", True))
    return flags == ("flow_prediction", True)


def _works(make: Callable[[], Any], num_inference_steps: int) -> bool:
    """Whether a scheduler can be made and used; no advice is sought in place of one that cannot."""
    try:
        if not _is_set_up(scheduler := make()):
            return False
        DiffusersFlowScheduler(scheduler)._try(num_inference_steps)
    except Exception:  # of any kind: whatever it is, it is no advice
        return False
    return True


def dynamic_shift(config: Any, num_tokens: int) -> float:
    """The `mu` of dynamic shifting, linear in the number of tokens, as in diffusers' pipelines."""
    value = {name: config.get(name) or default for name, default in DYNAMIC_SHIFT.items()}
    slope = (value["max_shift"] - value["base_shift"]) / (value["max_image_seq_len"] - value["base_image_seq_len"])
    return value["base_shift"] + slope * (num_tokens - value["base_image_seq_len"])


def _accepts(method: Any, argument: str) -> bool:
    return argument in inspect.signature(method).parameters
