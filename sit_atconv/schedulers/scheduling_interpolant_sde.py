"""Sampling by the reverse SDE dX = (velocity + w·score) dt + sqrt(2w) dW, from t=0 (noise) to t=1 (data).

Any w(t) ≥ 0 gives the same marginals (arXiv 2401.08740, Section 2.3). Velocity and score both follow from one network
output, so a drift costs one network call.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..flow.interpolants import DIFFUSION_FORMS
from ..flow.solvers import Callback, after_step
from ..utils.checks import check_choice, check_positive
from .common import InterpolantSchedulerMixin, InterpolantSchedulerOutput, ModelFn

SDE_SOLVERS = ("euler_maruyama", "heun")
LAST_STEPS = ("mean", "euler", "tweedie", "none")
SCORE_EPS = 1e-4  # w·score is a limit at t=1, where sigma is 0: it is read this far before it


class InterpolantSDEScheduler(InterpolantSchedulerMixin, SchedulerMixin, ConfigMixin):
    """Stochastic sampling of an interpolant model.

    Args:
        path: "linear", "gvp" or "vp", as the model was trained.
        prediction: "velocity", "score", "noise" or "data", as the model was trained.
        solver: "euler_maruyama" (one network call a step) or "heun" (two).
        diffusion_form: the shape of w(t): "constant", "sbdm", "sigma", "linear", "decreasing" or
            "increasing-decreasing"; see `Interpolant.diffusion`. "sbdm" starts with w in the hundreds on the linear and
            GVP paths and wants 100 steps or more; "constant" wants more the closer the data lies to a surface.
        diffusion_norm: the scale of w.
        last_step: how the last stretch to t=1 is covered, without noise: "mean" (a step of the SDE's drift), "euler"
            (a step of the ODE), "tweedie" (the expected data), or "none" (the SDE runs to the end). "mean" takes away
            a little of the spread, the more the larger w is there.
        last_step_size: the length of that stretch; ignored by "none".
        train_eps: what training cut from the ends of [0, 1]; kept for the record.
        sample_eps: what sampling cuts from the ends where the prediction is not finite; SiT's default where None.

    Raises:
        ValueError: for an unknown choice, numbers out of range, or no last step where w·score is infinite at t=1.
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
    ):
        self._set_up(path, prediction, train_eps, sample_eps)
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
        """Network calls a step, as diffusers counts them."""
        return 1 if self.config.solver == "euler_maruyama" else 2

    def time_grid(self, num_inference_steps: int) -> torch.Tensor:
        """The uniform grid of the SDE's steps, float64. Its last point is where the last step starts, if there is one.

        Raises:
            ValueError: for fewer than two steps where one of them is the last step.
        """
        has_last_step = self.config.last_step != "none"
        if has_last_step and num_inference_steps < 2:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} leaves no step besides "
                f"last_step={self.config.last_step!r}; take 2 or more"
            )
        start, end = self.interpolant.time_interval(self.sample_eps)
        if self.config.diffusion_form == "sbdm" and self.config.path != "vp":
            start = start or self.sample_eps or 1e-3  # this w is infinite at t=0
        if has_last_step:
            return torch.linspace(start, 1 - self.config.last_step_size, num_inference_steps, dtype=torch.float64)
        return torch.linspace(start, end, num_inference_steps + 1, dtype=torch.float64)

    def network_times(self, num_inference_steps: int) -> list[float]:
        """The times at which `solve` calls the network."""
        return self.time_grid(num_inference_steps).tolist()

    def _drift(self, model_output: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """velocity + w·score."""
        velocity = self.interpolant.to_velocity(model_output, x, t)
        t = t.clamp(max=1 - SCORE_EPS)
        return velocity + self._diffusion(t) * self.interpolant.to_score(model_output, x, t)

    def _diffusion(self, t: torch.Tensor) -> torch.Tensor:
        return self.interpolant.diffusion(t, self.config.diffusion_form, self.config.diffusion_norm)

    def _noise(self, x: torch.Tensor, t: torch.Tensor, dt: float, generator) -> torch.Tensor:
        """sqrt(2w) dW over a step dt."""
        noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return (2 * self._diffusion(t) * dt).sqrt() * noise

    def _last_step(self, model_output: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
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
    ) -> torch.Tensor:
        """Integrate from noise to data; `num_model_calls` then tells how often the network ran.

        Args:
            model_fn: (x, t) -> the network's raw output; t is () in [0, 1].
            latents: noise (B, C, H, W), float32.
            num_inference_steps: steps, the last one included.
            generator: of the noise: one for the batch, or a list of one per image.
            callback: (step, t, latents) after each step; what it returns, if not None, replaces the latents.
                StopIteration raised in it ends the solve.

        Raises:
            ValueError: for too few steps or latents in half precision.
        """
        self._check_state(latents, num_inference_steps)
        if isinstance(generator, list) and len(generator) != len(latents):
            raise ValueError(f"generator lists {len(generator)} generators for {len(latents)} images; give one each")
        model_fn = self._counted(model_fn)
        times = self.time_grid(num_inference_steps).tolist()
        x = latents
        ends = [*times[1:], 1.0] if self.config.last_step != "none" else times[1:]
        for i, (start, end) in enumerate(zip(times, ends, strict=False)):
            t, dt = torch.tensor(start, dtype=x.dtype), end - start
            if i == len(times) - 1:
                x = self._last_step(model_fn(x, t), x, t)
            elif self.config.solver == "euler_maruyama":
                x = x + dt * self._drift(model_fn(x, t), x, t) + self._noise(x, t, dt, generator)
            else:
                # the noise of the whole step first, then a deterministic Heun step of the drift (EDM's order)
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
        """Lay out `timesteps`, (num_inference_steps,), t itself, for a loop of network calls and `step`."""
        if self.config.solver != "euler_maruyama":
            raise ValueError(
                f"solver={self.config.solver!r} takes several network calls a step; use solve(), or 'euler_maruyama'"
            )
        self._check_state(torch.empty(0), num_inference_steps)
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
        """One step from `sample`, x_t (B, C, H, W) float32, given the network's output at x_t."""
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
