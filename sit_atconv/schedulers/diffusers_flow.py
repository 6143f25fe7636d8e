"""diffusers' own flow-matching schedulers, behind the interface of this package's schedulers.

Their sigma is 1 − t and their velocity is noise − data: both are converted here, and nowhere else.
"""

import inspect
from typing import Any

import numpy as np
import torch

from ..flow.callbacks import Callback, ModelFn, after_step
from ..flow.interpolants import Interpolant


class DiffusersFlowScheduler:
    """Samples with a flow-matching scheduler of diffusers.

    Args:
        scheduler: a `FlowMatch…Scheduler`, or another one with `use_flow_sigmas=True` and
            `prediction_type="flow_prediction"`. If its config names a `path` and a `prediction`, as one that was made
            by `from_config` of this package's schedulers does, the model's outputs are converted accordingly.

    Raises:
        ValueError: if the scheduler is not set up for flow matching, draws random numbers without a generator, or the
            path is not linear.
    """

    is_adaptive = False

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        config, name = scheduler.config, type(scheduler).__name__
        is_flow = name.startswith("FlowMatch") or (
            config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
        )
        if not is_flow:
            raise ValueError(
                f"scheduler {name} is not set up for flow matching; use "
                f"{name}.from_config(config, use_flow_sigmas=True, prediction_type='flow_prediction')"
            )
        if config.get("stochastic_sampling"):
            raise ValueError(f"{name}: stochastic_sampling draws without a generator; use InterpolantSDEScheduler")
        self.interpolant = Interpolant(config.get("path", "linear"), config.get("prediction", "velocity"))
        if self.interpolant.path != "linear":
            raise ValueError(
                f"path={self.interpolant.path!r}: diffusers' flow schedulers support the linear path only; use "
                "InterpolantODEScheduler"
            )

    def network_times(self, num_inference_steps: int) -> list[float]:
        """The times of the network calls of `solve`, in order, for its conditioning to be computed ahead."""
        return self._network_times(self._set_times(num_inference_steps)).tolist()

    def solve(
        self,
        model_fn: ModelFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """Sample from noise (B, C, H, W), float32; arguments as those of `InterpolantODEScheduler.solve`."""
        scheduler = self.scheduler
        times = self._set_times(num_inference_steps, latents.device)
        options = {"generator": generator} if _accepts(scheduler.step, "generator") else {}
        for i, (t, timestep) in enumerate(zip(self._network_times(times), scheduler.timesteps, strict=True)):
            velocity = self.interpolant.to_velocity(model_fn(latents, t), latents, t)
            latents = scheduler.step(-velocity, timestep, latents, return_dict=False, **options)[0]
            t_next = times[min(i + 1, len(times) - 1)].item()
            latents, stopped = after_step(callback, i, t_next, latents)
            if stopped:
                return latents
        return latents

    def _set_times(self, num_inference_steps: int, device: torch.device | None = None) -> torch.Tensor:
        """Set the scheduler's timesteps; return the times t that they stand for, and the last step's end, float32."""
        options = {}
        if _accepts(self.scheduler.set_timesteps, "sigmas"):
            options["sigmas"] = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps, device=device, **options)
        return 1 - self.scheduler.sigmas.to("cpu", torch.float32)  # timesteps may be rounded to whole numbers

    def _network_times(self, times: torch.Tensor) -> torch.Tensor:
        """The times of the network calls: those of `_set_times` where the prediction is finite."""
        interval = self.interpolant.time_interval(self.interpolant.default_eps(training=False))
        return times[: len(self.scheduler.timesteps)].clamp(*interval)


def _accepts(method: Any, argument: str) -> bool:
    return argument in inspect.signature(method).parameters
