"""Base class of the ODE and SDE schedulers. Time runs from noise (t=0) to data (t=1)."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..flow.callbacks import check_output
from ..flow.interpolants import Interpolant
from ..utils.checks import MAX_SOLVER_STEPS, check_count, check_eps, check_known, is_number, near_misses, plain_numbers
from ..utils.threads import PerThread

FOREIGN_OPTIONS = ("sampling_eps",)  # of diffusers' schedulers, though they look like misspelt options of these


@dataclass
class InterpolantSchedulerOutput(BaseOutput):
    """The output of one step: `prev_sample` (B, C, H, W), as diffusers calls the sample after the step."""

    prev_sample: torch.Tensor


class InterpolantScheduler(SchedulerMixin, ConfigMixin):
    """Base class of the schedulers for interpolant models: configuration, timesteps and checks."""

    solvers: tuple[str, ...] = ()  # the names that `solver` accepts

    def _initialize(
        self, path: str, prediction: str, noise_scale: float, train_eps: float | None, sample_eps: float | None
    ) -> None:
        """Check the arguments that all schedulers share, and set what follows from them."""
        # diffusers records arguments given by position as defaults, which from_config would then forget.
        defaults = inspect.signature(type(self).__init__).parameters
        unchanged = [
            name for name in self.config.get("_use_default_values", []) if self.config[name] == defaults[name].default
        ]
        self.register_to_config(_use_default_values=unchanged, **plain_numbers(self.config))
        self.interpolant = Interpolant(path, prediction, noise_scale)
        check_eps("train_eps", train_eps)
        check_eps("sample_eps", sample_eps)
        self.sample_eps = self.interpolant.default_eps(training=False) if sample_eps is None else sample_eps
        if self.sample_eps == 0 and self.interpolant.time_interval(1.0) != (0.0, 1.0):
            raise ValueError(
                f"sample_eps=0: prediction={prediction!r} on path={path!r} is not finite at both ends of [0, 1]; use a "
                "number above 0, or None for the default"
            )
        self._num_model_calls = PerThread(0)
        self.timesteps = torch.empty(0)
        self._grid = torch.empty(0, dtype=torch.float64)
        self._step_index = 0

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """Make a scheduler from a config, which may be that of another scheduler, and options that take precedence.

        Raises:
            ValueError: for an option that this scheduler does not have, and for an entry of the config that looks like
                a misspelt option. Other entries are those of other schedulers, and are kept for them.
        """
        if not return_unused_kwargs:
            options = _option_names(cls)
            check_known(cls.__name__, [name for name in kwargs if not name.startswith("_")], options)
            entries = [name for name in config or () if name not in FOREIGN_OPTIONS and not name.startswith("_")]
            check_known(f"the config of {cls.__name__}", near_misses(entries, options), options)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """Read a config, which may be that of another scheduler: if its solver is unknown here, the default is used.

        Entries of other schedulers are kept for them; diffusers would warn of each.
        """
        if config_dict.get("_class_name") != cls.__name__ and config_dict.get("solver") not in cls.solvers:
            config_dict = {name: value for name, value in config_dict.items() if name != "solver"}
        names = _option_names(cls)
        foreign = {name: value for name, value in config_dict.items() if name not in names and name[0] != "_"}
        own = {name: value for name, value in config_dict.items() if name not in foreign}
        given, unused, hidden = super().extract_init_dict(own, **kwargs)
        return given, unused, {**foreign, **hidden}

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """Return the sample as it is, since the network takes x_t unscaled."""
        return sample

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise from which a solve begins, as diffusers calls it."""
        return self.interpolant.noise_scale

    @property
    def num_model_calls(self) -> int:
        """The number of network calls of the last solve in this thread."""
        return self._num_model_calls.get()

    def counting_calls(self, model_fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Wrap `model_fn` to count its calls in `num_model_calls`, from 0, and return outputs in the dtype of x."""
        self._num_model_calls.set(0)

        def counted(x: torch.Tensor, *times: torch.Tensor) -> torch.Tensor:
            self._num_model_calls.set(self._num_model_calls.get() + 1)
            output = model_fn(x, *times)
            check_output(output, x)
            return output.to(x.dtype)

        return counted

    @staticmethod
    def first_time(start_time: float, first: float, last: float) -> float:
        """The first time of a grid that would run from `first` to `last`, for a solve that begins at `start_time`.

        Raises:
            ValueError: unless start_time is a number from 0 on, and before `last`.
        """
        if not is_number(start_time) or not 0 <= start_time < last:
            raise ValueError(f"start_time={start_time!r} must be at least 0 and below {last:g}, where the solve ends")
        return max(first, start_time)

    @staticmethod
    def check_state(latents: torch.Tensor, num_inference_steps: int) -> None:
        """Raise ValueError unless a solve of these latents with this number of steps is possible."""
        check_count("num_inference_steps", num_inference_steps, most=MAX_SOLVER_STEPS)
        if latents.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"latents are {latents.dtype}; the solver's state must be float32 (or float64)")

    def _check_step(self, sample: torch.Tensor, timestep: torch.Tensor | float) -> None:
        """Raise ValueError unless `step` can be called now, with this sample and timestep."""
        if self._step_index >= len(self.timesteps):
            raise ValueError("no timestep is left; call set_timesteps(num_inference_steps) before the loop")
        # Compared by memory address: comparing values would wait for a GPU.
        expected = self.timesteps[self._step_index]
        if isinstance(timestep, torch.Tensor) and timestep.device == self.timesteps.device:
            same_memory = timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr()
            if same_memory and timestep.data_ptr() != expected.data_ptr():
                raise ValueError(
                    f"timestep is not the next one (entry {self._step_index} of scheduler.timesteps); call step() once "
                    "per timestep, in order"
                )
        self.check_state(sample, 1)


def _option_names(scheduler_class: type) -> set[str]:
    return {*inspect.signature(scheduler_class).parameters}
