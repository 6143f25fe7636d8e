"""A network with its labels bound, whose conditioning can be computed ahead of a solve.

adaLN turns time and class into shifts, scales and gates, the modulations. `prepare` computes those of a whole solve at
once, which reads each weight once instead of once per step, and each call looks up its own by time.

The contract: a scheduler's `network_times(num_inference_steps)` lists the times at which its `solve` calls the network.
Two times are the same if their float32 values are (`time_key`). A call at any other time is correct, but slower: its
modulations are computed in the call. A scheduler of mean velocities lists steps (t, s) in place of times t.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..models.caching import FEW_CACHED_CALLS
from ..models.hooks import has_hooks
from .callbacks import check_output

MODULATION_BYTES = 2**30  # memory limit of the precomputed modulations; beyond it, they are computed call by call


def time_key(t: float | torch.Tensor) -> float:
    """Return the lookup key of a time: its float32 value, which is what the network receives."""
    return torch.as_tensor(t, dtype=torch.float32).item()


_modes_lock = threading.Lock()
# For each module that a context holds in eval mode: the number of contexts, in all threads, and the mode before them.
_modes: "WeakKeyDictionary[torch.nn.Module, tuple[int, bool]]" = WeakKeyDictionary()


@contextmanager
def evaluating(*models: torch.nn.Module | None) -> Iterator[None]:
    """Put models into eval mode inside this context, then restore the mode of each of their modules.

    Threads may share models: the mode of a module is restored when the last of them has left.
    """
    modules = {module: None for model in models if model is not None for module in model.modules()}  # each one once
    with _modes_lock:
        for module in modules:
            count, mode = _modes.get(module, (0, module.training))
            _modes[module] = count + 1, mode
            module.training = False
    try:
        yield
    finally:
        with _modes_lock:
            for module in modules:
                count, mode = _modes.pop(module)
                if count > 1:
                    _modes[module] = count - 1, mode
                else:
                    module.training = mode


class LabelledModel:
    """A network with its labels bound: `model(x, t, rows)` -> raw output, float32; `model(x, t, rows, s)` for a step.

    Args:
        transformer: a `SiTTransformer2DModel` in eval mode.
        labels: class ids (B,), or weights (B, C) of the classes, on the transformer's device; `rows` in a call selects
            those of the rows of x.
    """

    def __init__(self, transformer: ModelMixin, labels: torch.Tensor):
        self.transformer = transformer
        self.labels = labels
        if self._is_cached:
            transformer._reset_stateful_cache()  # what other images have left
        # What `prepare` computes; before that, and if it does not fit, every call computes its own modulations.
        self.modulations: torch.Tensor | None = None  # (times, unique labels, width)
        self.index: torch.Tensor | None = None  # of each label in the unique labels
        self.steps: dict[tuple[float, ...], int] = {}  # time_key of t, and of s if given -> index into self.modulations

    def prepare(self, times: Sequence[float] | Sequence[tuple[float, float]]) -> None:
        """Compute the modulations of all calls of a solve at once, if memory and the model's hooks allow it.

        Args:
            times: the times of the calls, as a scheduler's `network_times` lists them.
        """
        if self._is_cached and 0 < len(times) <= FEW_CACHED_CALLS:
            warnings.warn(
                f"a cache spoils the images of a solve of {len(times)} network calls and saves little, because "
                "neighbouring calls differ too much; call transformer.disable_cache(), and take fewer steps if that is "
                "too slow",
                stacklevel=2,
            )
        if not times or has_hooks(self.transformer):
            return
        calls = [time if isinstance(time, tuple) else (time,) for time in times]
        keys = list(dict.fromkeys(tuple(map(time_key, call)) for call in calls))
        unique_labels, index = self.labels.unique(return_inverse=True, dim=0)
        if not self._fits_in_memory(len(keys), len(unique_labels)):
            return
        self.index = index
        columns = torch.tensor(keys, device=self.labels.device).unbind(1)  # t, and s if there is one
        self.modulations = self.transformer.modulations(columns[0], unique_labels, *columns[1:])
        self.steps = {key: step for step, key in enumerate(keys)}

    def _fits_in_memory(self, num_times: int, num_labels: int) -> bool:
        limit = MODULATION_BYTES
        if self.labels.device.type == "cuda":
            limit = min(limit, torch.cuda.mem_get_info(self.labels.device)[0] // 8)
        elements = num_times * num_labels * sum(self.transformer.modulation_sizes)
        return elements * self.transformer.dtype.itemsize <= limit

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, rows: slice | torch.Tensor, s: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x.to(self.transformer.dtype)
        key = (t,) if s is None else (t, s)
        step = self.steps.get(tuple(map(time_key, key))) if self.steps and not t.ndim else None
        # The states of a cache are of one size: guidance doubles the rows while it is on.
        state = self.transformer.cache_context(f"{len(x)} rows") if self._is_cached else nullcontext()
        with state:
            output = self._output(x, t, rows, s, step)
        check_output(output, x)
        # A copy, because solvers keep the output, and CUDA graphs write each output to the same memory.
        return output.to(torch.float32, copy=True)

    @property
    def _is_cached(self) -> bool:
        """Whether one of diffusers' caches reuses what blocks computed in earlier calls."""
        return getattr(self.transformer, "is_cache_enabled", False)

    def _output(
        self, x: torch.Tensor, t: torch.Tensor, rows: slice | torch.Tensor, s: torch.Tensor | None, step: int | None
    ) -> torch.Tensor:
        """The network's output at a time for which modulations were prepared, or at any other."""
        if step is not None:
            assert self.modulations is not None and self.index is not None  # steps are set with them
            modulation = self.modulations[step, self.index[rows]]
            return self.transformer(x, None, None, return_dict=False, modulation=modulation)[0]
        end = {} if s is None else {"end_timestep": _on_device(s, x)}
        return self.transformer(x, _on_device(t, x), self.labels[rows], return_dict=False, **end)[0]


def _on_device(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A time () or (B,) as the network takes it."""
    if not t.ndim and t.device != x.device:
        # Filled in on the device: copying one number to a GPU makes the CPU wait for all queued work.
        return torch.full((len(x),), t.item(), device=x.device)
    return t
