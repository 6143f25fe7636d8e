"""Sampling with a network of mean velocities (MeanFlow, arXiv 2505.13447): one network call makes a step of any length.

B images, C channels, (H, W) latent size; x is (B, C, H, W) float32. Time runs from noise (t=0) to data (t=1), and the
step from t to s is x_s = x_t + (s − t)·u(x_t, t, s).
"""

from collections.abc import Callable

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..flow.callbacks import Callback, after_step
from .common import InterpolantScheduler, InterpolantSchedulerOutput

MeanModelFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (x, t, s) -> u


class MeanFlowScheduler(InterpolantScheduler, SchedulerMixin):  # diffusers looks for SchedulerMixin in the module
    """Sampling in a few steps with a model whose `step_conditioning` is "span" or "decoupled".

    The steps are exact as far as the network's mean velocities are, so their number is a matter of quality alone: 1, 2,
    4 or any other. No random numbers are drawn.

    Args:
        path: the path that the model was trained on, always "linear"; kept for other schedulers, which sample such a
            model as a flow.
        prediction: always "velocity", for the same reason.
        noise_scale: standard deviation of the noise that the model was trained with, from which a solve begins.

    Raises:
        ValueError: for another path or prediction.
    """

    order = 1  # network calls per step, as in diffusers
    default_num_inference_steps = 2

    @register_to_config
    def __init__(self, path: str = "linear", prediction: str = "velocity", noise_scale: float = 1.0):
        self._initialize(path, prediction, noise_scale, None, None)
        if (path, prediction) != ("linear", "velocity"):
            raise ValueError(
                f"path={path!r}, prediction={prediction!r}: MeanFlowScheduler samples models of the linear path with "
                "velocity prediction; use InterpolantODEScheduler"
            )

    def time_grid(self, num_inference_steps: int, start_time: float = 0.0) -> torch.Tensor:
        """The uniform grid of num_inference_steps + 1 times from noise, or from `start_time` on, to data, float64."""
        return torch.linspace(self.first_time(start_time, 0.0, 1.0), 1, num_inference_steps + 1, dtype=torch.float64)

    def network_times(self, num_inference_steps: int, start_time: float = 0.0) -> list[tuple[float, float]]:
        """The steps (t, s) of the network calls of `solve`, in order, for its conditioning to be computed ahead."""
        grid = self.time_grid(num_inference_steps, start_time).tolist()
        return list(zip(grid[:-1], grid[1:], strict=True))

    def solve(
        self,
        model_fn: MeanModelFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
        start_time: float = 0.0,
    ) -> torch.Tensor:
        """Go from noise to data. Afterwards, `num_model_calls` is the number of network calls.

        Args:
            model_fn: (x, t, s) -> the network's mean velocity; t and s are () in [0, 1].
            latents: noise (B, C, H, W), float32.
            num_inference_steps: number of steps, and of network calls.
            generator: ignored, since no random numbers are drawn; accepted as in the SDE scheduler.
            callback: called as (step, s, latents) after each step. If it returns a tensor, that replaces the latents;
                if it raises StopIteration, the solve ends.
            start_time: the time t of `latents` if they are not noise alone.

        Raises:
            ValueError: if num_inference_steps is below 1, the latents are in half precision, or start_time is not a
                time before 1.
        """
        self.check_state(latents, num_inference_steps)
        x = latents
        mean_velocity = self.counting_calls(model_fn)
        for i, (start, end) in enumerate(self.network_times(num_inference_steps, start_time)):
            u = mean_velocity(x, *(torch.tensor(time, dtype=x.dtype) for time in (start, end)))
            x, stopped = after_step(callback, i, end, x + (end - start) * u)
            if stopped:
                break
        return x

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `timesteps` and `end_timesteps`, t and s of each step, for a loop of network calls and `step`.

        Raises:
            ValueError: if num_inference_steps is below 1.
        """
        self.check_state(torch.empty(0), num_inference_steps)
        self._grid = self.time_grid(num_inference_steps)
        grid = self._grid.to(device, torch.float32)
        self.timesteps, self.end_timesteps = grid[:-1], grid[1:]  # each (num_inference_steps,)
        self._step_index = 0

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> InterpolantSchedulerOutput | tuple[torch.Tensor]:
        """Go from `sample` to the end of this step.

        Args:
            model_output: the network's output at `sample`, `timestep` and the entry of `end_timesteps`.
            timestep: the next entry of `timesteps`; the loop goes through them in order, from the first.
            sample: the noise at first, then what this method returned last; (B, C, H, W) float32.
            return_dict: whether to return an `InterpolantSchedulerOutput` or a tuple.

        Raises:
            ValueError: if no timestep is left, or timestep is not the next one.
        """
        self._check_step(sample, timestep)
        start, end = self._grid[self._step_index : self._step_index + 2].tolist()
        sample = sample + (end - start) * model_output.to(sample.dtype)
        self._step_index += 1
        return InterpolantSchedulerOutput(prev_sample=sample) if return_dict else (sample,)
