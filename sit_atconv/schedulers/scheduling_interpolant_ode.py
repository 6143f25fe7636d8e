"""Sampling by the probability flow ODE dx/dt = velocity(x, t), from t=0 (noise) to t=1 (data).

B images, C channels, (H, W) latent size. x and the latents are (B, C, H, W) float32, the solver's state.
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..flow.callbacks import Callback, ModelFn, VelocityFn
from ..flow.choices import ODE_SOLVERS
from ..flow.fixed_step import combine, stage_times
from ..flow.solvers import solve_ode
from ..flow.tableaus import ADAPTIVE, FIXED_STEP
from ..utils.checks import check_choice, check_positive
from .common import InterpolantScheduler, InterpolantSchedulerOutput


class InterpolantODEScheduler(InterpolantScheduler, SchedulerMixin):  # diffusers looks for SchedulerMixin in the module
    """Deterministic sampling of an interpolant model.

    Args:
        path: the path that the model was trained on: "linear", "gvp" or "vp".
        prediction: what the model was trained to predict: "velocity", "score", "noise" or "data".
        solver: fixed-step "euler", "midpoint", "heun", "heun3", "rk4" (1, 2, 2, 3 and 4 network calls per step); or
            adaptive "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", which choose their own steps for each
            image; or the multistep "explicit_adams", "implicit_adams", which need torchdiffeq.
        rtol, atol: tolerances of the adaptive solvers.
        train_eps: time that training cut from the ends of [0, 1]; recorded in the config, not used.
        sample_eps: time that sampling cuts from each end of [0, 1] at which the prediction is not finite. If None, the
            default of SiT.
        noise_scale: standard deviation of the noise that the model was trained with, from which a solve begins.

    Raises:
        ValueError: if a choice is unknown, a tolerance is not positive, or sample_eps is 0 though a cut is needed.
    """

    solvers = ODE_SOLVERS

    @register_to_config
    def __init__(
        self,
        path: str = "linear",
        prediction: str = "velocity",
        solver: str = "midpoint",
        rtol: float = 1e-3,
        atol: float = 1e-6,
        train_eps: float | None = None,
        sample_eps: float | None = None,
        noise_scale: float = 1.0,
    ):
        self._initialize(path, prediction, noise_scale, train_eps, sample_eps)
        check_choice("solver", solver, self.solvers)
        check_positive("rtol", rtol)
        check_positive("atol", atol)

    @property
    def order(self) -> int:
        """Network calls per step, as in diffusers; 1 for solvers that choose their own steps."""
        if self.config.solver in FIXED_STEP:
            return len(FIXED_STEP[self.config.solver].c)
        return 5 if self.config.solver == "implicit_adams" else 1  # it iterates, about four times per step

    @property
    def is_adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return self.config.solver in ADAPTIVE

    def time_grid(self, num_inference_steps: int, start_time: float = 0.0) -> torch.Tensor:
        """The uniform grid of num_inference_steps + 1 times from noise, or from `start_time` on, to data, float64."""
        start, end = self.interpolant.time_interval(self.sample_eps)
        start = self.first_time(start_time, start, end)
        return torch.linspace(start, end, num_inference_steps + 1, dtype=torch.float64)

    def network_times(self, num_inference_steps: int, reverse: bool = False, start_time: float = 0.0) -> list[float]:
        """The times of the network calls of `solve`, in order, for its conditioning to be computed ahead.

        Empty for adaptive and multistep solvers, whose times are not known ahead.
        """
        if self.config.solver not in FIXED_STEP:
            return []
        grid = self._solve_grid(num_inference_steps, reverse, start_time).tolist()
        tableau = FIXED_STEP[self.config.solver]
        return [t for pair in zip(grid[:-1], grid[1:], strict=True) for t in stage_times(tableau, *pair)]

    def _solve_grid(self, num_inference_steps: int, reverse: bool, start_time: float) -> torch.Tensor:
        grid = self.time_grid(num_inference_steps, start_time)
        return grid.flip(0) if reverse else grid

    def solve(
        self,
        model_fn: ModelFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
        reverse: bool = False,
        start_time: float = 0.0,
    ) -> torch.Tensor:
        """Integrate from noise to data. Afterwards, `num_model_calls` is the number of network calls.

        Args:
            model_fn: (x, t) -> the network's raw output; t is () or (B,) in [0, 1].
            latents: noise (B, C, H, W), float32.
            num_inference_steps: number of steps; adaptive solvers ignore it.
            generator: ignored, since the ODE draws no random numbers; accepted as in the SDE scheduler.
            callback: called as (step, t, latents) after each step. If it returns a tensor, that replaces the latents;
                if it raises StopIteration, the solve ends.
            reverse: integrate from data to noise: `latents` is data, and the result is the noise it comes from.
            start_time: the time t of `latents` if they are not noise alone; with `reverse`, the time to end at.

        Raises:
            ValueError: if num_inference_steps is below 1, the latents are in half precision, or start_time is not a
                time before the end.
            RuntimeError: if an adaptive solver cannot proceed.
        """
        self.check_state(latents, num_inference_steps)
        counted = self.counting_calls(model_fn)

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.interpolant.to_velocity(counted(x, t), x, t)

        return self.integrate(velocity, latents, num_inference_steps, callback, reverse, start_time)

    def integrate(
        self,
        velocity_fn: VelocityFn,
        x: torch.Tensor,
        num_inference_steps: int,
        callback: Callback | None = None,
        reverse: bool = False,
        start_time: float = 0.0,
    ) -> torch.Tensor:
        """Solve dx/dt = velocity_fn(x, t) for any velocity with this scheduler's solver and times; x (B, …)."""
        grid = self._solve_grid(num_inference_steps, reverse, start_time)
        return solve_ode(velocity_fn, x, grid, self.config.solver, self.config.rtol, self.config.atol, callback)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `timesteps` for a loop of network calls and `step`: t itself, (num_inference_steps · order,).

        Raises:
            ValueError: if num_inference_steps is below 1 or the solver has no fixed number of network calls.
        """
        if self.config.solver not in FIXED_STEP:
            raise ValueError(
                f"solver={self.config.solver!r} cannot be stepped from outside; use solve(), or a fixed-step solver: "
                f"{', '.join(FIXED_STEP)}"
            )
        self.check_state(torch.empty(0), num_inference_steps)
        self._grid = self.time_grid(num_inference_steps)
        self._stage_times = torch.tensor(self.network_times(num_inference_steps), dtype=torch.float64)
        self.timesteps = self._stage_times.to(device, torch.float32)
        self._step_index = 0

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> InterpolantSchedulerOutput | tuple[torch.Tensor]:
        """Go on from `sample` to the state at which the network is called next.

        That is the start of the next step or, with a solver of several network calls per step, the next stage of this
        one.

        Args:
            model_output: the network's output at `sample` and `timestep`.
            timestep: the next entry of `timesteps`; the loop goes through them in order, from the first.
            sample: the noise at first, then what this method returned last; (B, C, H, W) float32.
            return_dict: whether to return an `InterpolantSchedulerOutput` or a tuple.

        Raises:
            ValueError: if no timestep is left, or timestep is not the next one.
        """
        self._check_step(sample, timestep)
        tableau = FIXED_STEP[self.config.solver]
        index, stage = divmod(self._step_index, self.order)
        if stage == 0:
            self._step_start, self._velocities = sample, []
        t = self._stage_times[self._step_index].to(sample.dtype)
        self._velocities.append(self.interpolant.to_velocity(model_output.to(sample.dtype), sample, t))
        weights = tableau.b if stage == self.order - 1 else tableau.a[stage + 1]
        dt = (self._grid[index + 1] - self._grid[index]).item()
        sample = self._step_start + dt * combine(weights, self._velocities)
        self._step_index += 1
        return InterpolantSchedulerOutput(prev_sample=sample) if return_dict else (sample,)
