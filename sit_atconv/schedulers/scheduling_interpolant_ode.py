"""Sampling by the probability flow ODE dx/dt = velocity(x, t), from t=0 (noise) to t=1 (data)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..flow.solvers import (
    ADAPTIVE,
    FIXED_STEP,
    MULTISTEP,
    Callback,
    combine,
    solve_adaptive,
    solve_fixed,
    solve_multistep,
    stage_times,
)
from ..utils.checks import check_choice, check_positive
from .common import InterpolantSchedulerMixin, InterpolantSchedulerOutput, ModelFn


class InterpolantODEScheduler(InterpolantSchedulerMixin, SchedulerMixin, ConfigMixin):
    """Deterministic sampling of an interpolant model.

    Args:
        path: "linear", "gvp" or "vp", as the model was trained.
        prediction: "velocity", "score", "noise" or "data", as the model was trained.
        solver: fixed-step "euler", "midpoint", "heun", "heun3", "rk4" (1, 2, 2, 3 and 4 network calls a step); or
            adaptive "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", which choose their own steps for each
            image; or torchdiffeq's multistep "explicit_adams", "implicit_adams".
        rtol, atol: tolerances of the adaptive solvers.
        train_eps: what training cut from the ends of [0, 1]; kept for the record.
        sample_eps: what sampling cuts from the ends where the prediction is not finite; SiT's default where None.

    Raises:
        ValueError: for an unknown choice, a tolerance that is not positive, or an eps of 0 where one is needed.
    """

    solvers = (*FIXED_STEP, *ADAPTIVE, *MULTISTEP)

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
    ):
        self._set_up(path, prediction, train_eps, sample_eps)
        check_choice("solver", solver, self.solvers)
        check_positive("rtol", rtol)
        check_positive("atol", atol)

    @property
    def order(self) -> int:
        """Network calls a step, as diffusers counts them; 1 where the solver chooses its steps."""
        if self.config.solver in FIXED_STEP:
            return len(FIXED_STEP[self.config.solver].c)
        return 5 if self.config.solver == "implicit_adams" else 1  # which iterates, mostly four times

    @property
    def is_adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return self.config.solver in ADAPTIVE

    def time_grid(self, num_inference_steps: int) -> torch.Tensor:
        """The uniform grid of num_inference_steps + 1 times, float64."""
        start, end = self.interpolant.time_interval(self.sample_eps)
        return torch.linspace(start, end, num_inference_steps + 1, dtype=torch.float64)

    def network_times(self, num_inference_steps: int) -> list[float]:
        """The times of the network calls of `solve`, in order; none for solvers that are not on a fixed grid."""
        if self.config.solver not in FIXED_STEP:
            return []
        tableau, grid = FIXED_STEP[self.config.solver], self.time_grid(num_inference_steps).tolist()
        return [t for pair in zip(grid[:-1], grid[1:], strict=True) for t in stage_times(tableau, *pair)]

    def solve(
        self,
        model_fn: ModelFn,
        latents: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
        reverse: bool = False,
    ) -> torch.Tensor:
        """Integrate from noise to data; `num_model_calls` then tells how often the network ran.

        Args:
            model_fn: (x, t) -> the network's raw output; t is () or (B,) in [0, 1].
            latents: noise (B, C, H, W), float32.
            num_inference_steps: steps of a fixed-step solver; adaptive solvers ignore it.
            generator: not used, the ODE draws nothing; there to match the SDE scheduler.
            callback: (step, t, latents) after each step; what it returns, if not None, replaces the latents.
                StopIteration raised in it ends the solve.
            reverse: integrate from data to noise: `latents` is data, and the result is the noise it comes from.

        Raises:
            ValueError: for zero steps or latents in half precision.
            RuntimeError: where an adaptive solver cannot proceed.
        """
        self._check_state(latents, num_inference_steps)
        model_fn = self._counted(model_fn)

        def velocity(x, t):
            return self.interpolant.to_velocity(model_fn(x, t), x, t)

        return self.integrate(velocity, latents, num_inference_steps, callback, reverse)

    def integrate(
        self,
        velocity_fn: ModelFn,
        x: torch.Tensor,
        num_inference_steps: int,
        callback: Callback | None = None,
        reverse: bool = False,
    ) -> torch.Tensor:
        """Solve dx/dt = velocity_fn(x, t) over the time interval with the chosen solver; x (B, …)."""
        grid = self.time_grid(num_inference_steps)
        grid = grid.flip(0) if reverse else grid
        solver = self.config.solver
        if solver in FIXED_STEP:
            return solve_fixed(velocity_fn, x, grid, FIXED_STEP[solver], callback)
        if solver in MULTISTEP:
            return solve_multistep(velocity_fn, x, grid, solver, callback)
        start, end = grid[0].item(), grid[-1].item()
        tolerances = (self.config.rtol, self.config.atol)
        return solve_adaptive(velocity_fn, x, start, end, ADAPTIVE[solver], *tolerances, callback)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out `timesteps`, (num_inference_steps · order,), t itself, for a loop of network calls and `step`.

        Raises:
            ValueError: for zero steps, or a solver without a fixed number of network calls.
        """
        if self.config.solver not in FIXED_STEP:
            raise ValueError(
                f"solver={self.config.solver!r} cannot be stepped from outside; use solve(), or a fixed-step solver: "
                f"{', '.join(FIXED_STEP)}"
            )
        self._check_state(torch.empty(0), num_inference_steps)
        self._grid = self.time_grid(num_inference_steps)
        self._stage_times = torch.tensor(self.network_times(num_inference_steps), dtype=torch.float64)
        self.timesteps = self._stage_times.to(device, torch.float32)
        self._step_index = 0

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> InterpolantSchedulerOutput | tuple[torch.Tensor]:
        """Go on from `sample`, (B, C, H, W) float32, to where the network is to be called next.

        That is the next step's start, x_t, or with a solver of several network calls a step the next stage within it.

        Args:
            model_output: the network's output at `sample` and `timestep`.
            timestep: the entry of `timesteps` whose turn it is; they are gone through in order, from the first.
            sample: what this method returned last, or the noise.
            return_dict: return an `InterpolantSchedulerOutput` or a tuple.
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
