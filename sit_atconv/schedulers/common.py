"""What the ODE and the SDE scheduler share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput

from ..flow.interpolants import Interpolant
from ..utils.checks import check_count, check_eps

ModelFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class InterpolantSchedulerOutput(BaseOutput):
    """The sample after one step: `prev_sample` (B, C, H, W), diffusers' name for it."""

    prev_sample: torch.Tensor


class InterpolantSchedulerMixin:
    """Bookkeeping of a scheduler whose time runs from noise (t=0) to data (t=1)."""

    order = 1
    init_noise_sigma = 1.0
    solvers: tuple[str, ...] = ()  # that the class offers

    def _set_up(self, path: str, prediction: str, train_eps: float | None, sample_eps: float | None) -> None:
        # diffusers takes arguments given by position for defaults, and from_config would forget them
        defaults = inspect.signature(type(self).__init__).parameters
        unchanged = [
            name for name in self.config.get("_use_default_values", []) if self.config[name] == defaults[name].default
        ]
        self.register_to_config(_use_default_values=unchanged)
        self.interpolant = Interpolant(path, prediction)
        check_eps("train_eps", train_eps)
        check_eps("sample_eps", sample_eps)
        self.sample_eps = self.interpolant.default_eps(training=False) if sample_eps is None else sample_eps
        if self.sample_eps == 0 and self.interpolant.time_interval(1.0) != (0.0, 1.0):
            raise ValueError(f"sample_eps=0: prediction={prediction!r} on path={path!r} is not finite at both ends")
        self.num_model_calls = 0
        self.timesteps = torch.empty(0)
        self._grid = torch.empty(0, dtype=torch.float64)
        self._step_index = 0

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """Read a config. One of another scheduler may name a solver that is unknown here: then the default is taken."""
        if config_dict.get("_class_name") != cls.__name__ and config_dict.get("solver") not in cls.solvers:
            config_dict = {name: value for name, value in config_dict.items() if name != "solver"}
        return super().extract_init_dict(config_dict, **kwargs)

    def scale_model_input(self, sample: torch.Tensor, timestep=None) -> torch.Tensor:
        """Return the sample as it is: the network takes x_t unscaled."""
        return sample

    def _counted(self, model_fn: ModelFn) -> ModelFn:
        """Count the calls of `model_fn` in `num_model_calls`, from 0."""
        self.num_model_calls = 0

        def counted(x, t):
            self.num_model_calls += 1
            return model_fn(x, t).to(x.dtype)

        return counted

    @staticmethod
    def _check_state(latents: torch.Tensor, num_inference_steps: int) -> None:
        check_count("num_inference_steps", num_inference_steps)
        if latents.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"latents are {latents.dtype}; the solver's state must be float32 (or float64)")

    def _check_step(self, sample: torch.Tensor, timestep: torch.Tensor | float) -> None:
        if self._step_index >= len(self.timesteps):
            raise ValueError("no timestep is left; call set_timesteps(num_inference_steps) before the loop")
        # Not by value, which would wait for a GPU: an entry of `timesteps` is known by where it lies.
        expected = self.timesteps[self._step_index]
        if isinstance(timestep, torch.Tensor) and timestep.device == self.timesteps.device:
            same_memory = timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr()
            if same_memory and timestep.data_ptr() != expected.data_ptr():
                raise ValueError(
                    f"timestep is not entry {self._step_index} of timesteps, whose turn it is; go through them in "
                    "order, from the first"
                )
        self._check_state(sample, 1)
