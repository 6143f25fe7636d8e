"""Sampling by the reverse SDE dX = (velocity + w·score) dt + sqrt(2w) dW, from t=0 (noise) to t=1 (data).

Any w(t) ≥ 0 gives the same marginals (arXiv 2401.08740, Section 2.3). Velocity and score both follow from one network
output, so a drift costs one network call. B images, C channels, (H, W) latent size; x is (B, C, H, W) float32.
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..flow.callbacks import Callback, ModelFn, after_step
from ..flow.choices import SDE_SOLVERS
from ..flow.interpolants import DIFFUSION_FORMS
from ..utils.checks import check_choice, check_positive
from ..utils.randomness import check_generator
from .common import InterpolantScheduler, InterpolantSchedulerOutput

LAST_STEPS = ("mean", "euler", "tweedie", "none")
SCORE_EPS = 1e-4  # at t=1, where sigma is 0, w·score is a limit: it is evaluated this much earlier


class InterpolantSDEScheduler(InterpolantScheduler, SchedulerMixin):  # diffusers looks for SchedulerMixin in the module
    """Stochastic sampling of an interpolant model.

    Args:
        path: the path that the model was trained on: "linear", "gvp" or "vp".
        prediction: what the model was trained to predict: "velocity", "score", "noise" or "data".
        solver: "euler_maruyama" (one network call per step) or "heun" (two).
        diffusion_form: the shape of w(t): "constant", "sbdm", "sigma", "linear", "decreasing" or
            "increasing-decreasing"; see `Interpolant.diffusion`. On the linear and GVP paths, w of "sbdm" starts in
            the hundreds and needs 100 steps or more; "constant" needs more steps the closer the data is to a surface.
        diffusion_norm: scale of w.
        last_step: how the last interval up to t=1 is covered, without noise: "mean" (a step of the SDE's drift),
            "euler" (a step of the ODE), "tweedie" (the expected data), or "none" (the SDE runs to the end). "mean"
            reduces the spread of the samples slightly, more so for a larger w near t=1.
        last_step_size: length of that interval; ignored if `last_step` is "none".
        train_eps: time that training cut from the ends of [0, 1]; recorded in the config, not used.
        sample_eps: time that sampling cuts from each end of [0, 1] at which the prediction is not finite. If None, the
            default of SiT.
        noise_scale: standard deviation of the noise that the model was trained with, from which a solve begins.
            The noise of the steps has the same scale.

    Raises:
        ValueError: if a choice is unknown, a number is out of range, or last_step is "none" though w·score is infinite
            at t=1.
    """

    solvers = SDE_SOLVERS

    @register_to_config
    def __init__(
        self,
        path: str = "linear",
        prediction: str = "velocity",
        solver: str = "euler_maruyama",
        diffusion_form: str = "sigma",
        diffusion_norm: float = 1.0,
        last_step: str = "mean",
        last_step_size: float = 0.04,
        train_eps: float | None = None,
        sample_eps: float | None = None,
        noise_scale: float = 1.0,
    ):
        self._initialize(path, prediction, noise_scale, train_eps, sample_eps)
        check_choice("solver", solver, self.solvers)
        check_choice("diffusion_form", diffusion_form, DIFFUSION_FORMS)
        check_positive("diffusion_norm", diffusion_norm)
        check_choice("last_step", last_step, LAST_STEPS)
        if last_step != "none" and not 0 < last_step_size < 0.5:
            raise ValueError(f"last_step_size={last_step_size!r} must be between 0 and 0.5")
        _, end = self.interpolant.time_interval(self.sample_eps)
        if last_step == "none" and end == 1 and self._diffusion(torch.ones(())) > 1e-6:
            raise ValueError(
                f"last_step='none' with diffusion_form={diffusion_form!r}, diffusion_norm={diffusion_norm}: w is not 0 "
                "at t=1, where the score of images has no bound; use last_step='mean', or diffusion_form='sigma'"
            )

    @property
    def order(self) -> int:
        """Network calls per step, as in diffusers."""
        return 1 if self.config.solver == "euler_maruyama" else 2

    @property
    def least_steps(self) -> int:
        """The smallest `num_inference_steps`: one besides the last step, if there is one."""
        return 1 if self.config.last_step == "none" else 2

    def time_grid(self, num_inference_steps: int, start_time: float = 0.0) -> torch.Tensor:
        """The uniform grid of the SDE's steps from noise, or from `start_time` on, float64.

        If there is a last step, it starts at the grid's last point.

        Raises:
            ValueError: if there is a last step and no other, or start_time is not a time before it.
        """
        has_last_step = self.config.last_step != "none"
        if num_inference_steps < self.least_steps:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} leaves no step besides "
                f"last_step={self.config.last_step!r}; use 2 or more"
            )
        start, end = self.interpolant.time_interval(self.sample_eps)
        if self.config.diffusion_form == "sbdm" and self.config.path != "vp":
            start = start or self.sample_eps or 1e-3  # this w is infinite at t=0
        if has_last_step:
            end = 1 - self.config.last_step_size
        start = self.first_time(start_time, start, end)
        return torch.linspace(start, end, num_inference_steps + (not has_last_step), dtype=torch.float64)

    def network_times(self, num_inference_steps: int, start_time: float = 0.0) -> list[float]:
        """The times of the network calls of `solve`, in order, for its conditioning to be computed ahead."""
        grid = self.time_grid(num_inference_steps, start_time).tolist()
        steps = zip(grid[:-1], grid[1:], strict=True)
        times = [t for step in steps for t in step[: self.order]]  # Heun's method also calls the network at the end
        return times if self.config.last_step == "none" else [*times, grid[-1]]

    def _drift(self, model_output: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """velocity + w·score."""
        velocity = self.interpolant.to_velocity(model_output, x, t)
        t = t.clamp(max=1 - SCORE_EPS)
        return velocity + self._diffusion(t) * self.interpolant.to_score(model_output, x, t)

    def _diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """w(t), in the units of the noise."""
        variance = self.interpolant.noise_scale**2
        return variance * self.interpolant.diffusion(t, self.config.diffusion_form, self.config.diffusion_norm)

    def _noise(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        dt: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """sqrt(2w) dW of a step dt."""
        noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return (2 * self._diffusion(t) * dt).sqrt() * noise

    def _last_step(self, model_output: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The step without noise up to t=1."""
        h = self.config.last_step_size
        if self.config.last_step == "mean":
            return x + h * self._drift(model_output, x, t)
        if self.config.last_step == "euler":
            return x + h * self.interpolant.to_velocity(model_output, x, t)
        return self.interpolant.to_data(model_output, x, t)

    def solve(
        self,
        model_fn: ModelFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
        start_time: float = 0.0,
    ) -> torch.Tensor:
        """Integrate from noise to data. Afterwards, `num_model_calls` is the number of network calls.

        Args:
            model_fn: (x, t) -> the network's raw output; t is () in [0, 1].
            latents: noise (B, C, H, W), float32.
            num_inference_steps: number of steps, including the last step.
            generator: random generator of the noise: one for the batch, or a list with one per image.
            callback: called as (step, t, latents) after each step. If it returns a tensor, that replaces the latents;
                if it raises StopIteration, the solve ends.
            start_time: the time t of `latents` if they are not noise alone.

        Raises:
            ValueError: if there are too few steps, the latents are in half precision, or start_time is not a time
                before the last step.
        """
        self.check_state(latents, num_inference_steps)
        check_generator(generator, len(latents))
        model_fn = self.counting_calls(model_fn)
        times = self.time_grid(num_inference_steps, start_time).tolist()
        x = latents
        ends = [*times[1:], 1.0] if self.config.last_step != "none" else times[1:]
        for i, (start, end) in enumerate(zip(times, ends, strict=False)):
            t, dt = torch.tensor(start, dtype=x.dtype), end - start
            if i == len(times) - 1:
                x = self._last_step(model_fn(x, t), x, t)
            elif self.config.solver == "euler_maruyama":
                x = x + dt * self._drift(model_fn(x, t), x, t) + self._noise(x, t, dt, generator)
            else:
                # The noise of the whole step first, then a deterministic Heun step of the drift, as in EDM.
                x = x + self._noise(x, t, dt, generator)
                t_next = torch.tensor(end, dtype=x.dtype)
                drift = self._drift(model_fn(x, t), x, t)
                x_next = x + dt * drift
                x = x + dt / 2 * (drift + self._drift(model_fn(x_next, t_next), x_next, t_next))
            x, stopped = after_step(callback, i, end, x)
            if stopped:
                return x
        return x

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `timesteps` for a loop of network calls and `step`: t itself, (num_inference_steps,).

        Raises:
            ValueError: if there are too few steps or the solver needs several network calls per step.
        """
        if self.config.solver != "euler_maruyama":
            raise ValueError(
                f"solver={self.config.solver!r} needs several network calls per step; use solve(), or "
                "solver='euler_maruyama'"
            )
        self.check_state(torch.empty(0), num_inference_steps)
        self._grid = self.time_grid(num_inference_steps)
        self.timesteps = self._grid[:num_inference_steps].to(device, torch.float32)
        self._step_index = 0

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> InterpolantSchedulerOutput | tuple[torch.Tensor]:
        """Take one step.

        Args:
            model_output: the network's output at `sample` and `timestep`.
            timestep: the next entry of `timesteps`; the loop goes through them in order, from the first.
            sample: x_t, (B, C, H, W) float32.
            generator: random generator of the noise: one for the batch, or a list with one per image.
            return_dict: whether to return an `InterpolantSchedulerOutput` or a tuple.

        Raises:
            ValueError: if no timestep is left, or timestep is not the next one.
        """
        self._check_step(sample, timestep)
        model_output = model_output.to(sample.dtype)
        t = self._grid[self._step_index].to(sample.dtype)
        if self._step_index == len(self._grid) - 1:
            sample = self._last_step(model_output, sample, t)
        else:
            dt = (self._grid[self._step_index + 1] - self._grid[self._step_index]).item()
            noise = self._noise(sample, t, dt, generator)
            sample = sample + dt * self._drift(model_output, sample, t) + noise
        self._step_index += 1
        return InterpolantSchedulerOutput(prev_sample=sample) if return_dict else (sample,)
