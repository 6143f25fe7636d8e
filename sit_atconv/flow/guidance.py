"""Guidance as a function of (x, t), for any solver: classifier-free (arXiv 2207.12598) or by a weaker model
(autoguidance, arXiv 2406.02507)."""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch


@dataclass(frozen=True)
class Guidance:
    """How strongly, when, in which channels and by what the prediction of a network is guided.

    Error messages use the names that the arguments have in `SiTPipeline`: `scale` is `guidance_scale` there, and so on.

    Args:
        scale: s in weak + s·(cond − weak); 1 applies no guidance and costs nothing.
        interval: guidance is applied for start ≤ t ≤ end only (arXiv 2404.07724); t=0 is noise, t=1 data.
        channels: the number of leading channels to guide; the other channels stay conditional. If None, all channels.
        model: a weaker model with the same prediction, which replaces the null class as the weak prediction.

    Raises:
        ValueError: if a value is out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    model: torch.nn.Module | None = None

    def __post_init__(self):
        scale, interval, channels = self.scale, self.interval, self.channels
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
            raise ValueError(f"guidance_scale={scale!r} must be a number of at least 0")
        if not isinstance(interval, (list, tuple)) or len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"guidance_interval={interval} must be (start, end) with 0 ≤ start ≤ end ≤ 1")
        if channels is not None and (
            isinstance(channels, bool) or not isinstance(channels, Integral) or int(channels) < 1
        ):
            raise ValueError(f"guidance_channels={channels!r} must be a whole number of at least 1, or None")
        if self.model is not None and not isinstance(self.model, torch.nn.Module):
            raise ValueError(f"guidance_model={self.model!r} must be a model, such as SiTTransformer2DModel, or None")

    @property
    def is_active(self) -> bool:
        """Whether the guided prediction differs from the conditional one."""
        return self.scale != 1.0

    def check(self, transformer: torch.nn.Module) -> None:
        """Raise ValueError if this guidance cannot be applied to the `SiTTransformer2DModel`."""
        config = transformer.config
        if self.is_active and self.model is None and config.class_dropout_prob == 0:
            raise ValueError(
                f"guidance_scale={self.scale}: this model was trained without class dropout and cannot be guided; "
                "use guidance_scale=1"
            )
        if self.channels is not None and self.channels > config.in_channels:
            raise ValueError(f"guidance_channels={self.channels} must lie in 1…{config.in_channels}")


@contextmanager
def evaluating(*modules: torch.nn.Module | None):
    """Put modules into eval mode for a while, and back into the mode that each was in."""
    modules = [module for module in modules if module is not None]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


MODULATION_BYTES = 2**30  # of adaLN's shifts, scales and gates for a whole solve; more is computed step by step


class LabelledModel:
    """The network with its labels bound: `model(x, t, rows)` -> raw output, float32.

    Args:
        transformer: a `SiTTransformer2DModel` in eval mode.
        labels: ids on the transformer's device; `rows` in a call says which of them the rows of x have.
    """

    def __init__(self, transformer: torch.nn.Module, labels: torch.Tensor):
        self.transformer = transformer
        self.labels = labels
        self.steps = {}  # index into self.modulations by time

    def prepare(self, times: Sequence[float]) -> None:
        """Compute ahead, and at once, what time and class do to the blocks at the times of a fixed-step solve."""
        # Hooks that move or gather weights, accelerate's, diffusers' and PyTorch's, do so for `forward` alone.
        hooked = any(
            hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") or module._forward_pre_hooks
            for module in self.transformer.modules()
        )
        if hooked or not times:
            return
        times = list(dict.fromkeys(torch.tensor(times, dtype=torch.float32).tolist()))
        unique = sorted(set(self.labels.tolist()))
        elements = len(times) * len(unique) * sum(self.transformer.modulation_sizes)
        limit = MODULATION_BYTES
        if self.labels.device.type == "cuda":
            limit = min(limit, torch.cuda.mem_get_info(self.labels.device)[0] // 8)
        if elements * self.transformer.dtype.itemsize > limit:
            return
        unique_labels = torch.tensor(unique, device=self.labels.device)
        self.index = torch.searchsorted(unique_labels, self.labels)  # of each label in unique_labels
        self.modulations = self.transformer.modulations(torch.tensor(times, device=self.labels.device), unique_labels)
        self.steps = {t: i for i, t in enumerate(times)}

    def __call__(self, x: torch.Tensor, t: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        x = x.to(self.transformer.dtype)
        step = self.steps.get(t.item()) if self.steps and not t.ndim else None
        if step is not None:
            modulation = self.modulations[step, self.index[rows]]
            output = self.transformer(x, None, None, return_dict=False, modulation=modulation)[0]
            return output.to(torch.float32, copy=True)  # solvers keep it, and CUDA graphs write to the same place again
        if not t.ndim and t.device != x.device:
            # Filled in there: copying one number to a GPU would make the CPU wait for all that the GPU has yet to do.
            t = torch.full((len(x),), t.item(), device=x.device)
        return self.transformer(x, t, self.labels[rows], return_dict=False)[0].to(torch.float32, copy=True)


class GuidedModel:
    """The network with its labels bound and its prediction guided: `model(x, t)` -> raw output, float32.

    Where guidance applies, the network runs on 2·B rows, the conditional and the null-class half; elsewhere on B. With
    `guidance.model`, that model runs on B rows in place of the null-class half.

    Args:
        transformer: a `SiTTransformer2DModel` in eval mode.
        class_labels: (B,) ids on the transformer's device.
        guidance: how to guide; by default not at all.

    Raises:
        ValueError: if guidance needs a null class and the transformer has none.
    """

    def __init__(self, transformer: torch.nn.Module, class_labels: torch.Tensor, guidance: Guidance | None = None):
        self.guidance = guidance or Guidance()
        self.weaker = None
        if self.guidance.is_active and self.guidance.model is not None:
            self.weaker = LabelledModel(self.guidance.model, class_labels)
        elif self.guidance.is_active:
            null_labels = torch.full_like(class_labels, transformer.null_class)
            class_labels = torch.cat([class_labels, null_labels])  # (2·B,)
        self.model = LabelledModel(transformer, class_labels)

    def prepare(self, times: Sequence[float]) -> None:
        """Compute the conditioning of a solve ahead of it.

        Args:
            times: at which the network will be called. Others are possible, too, at the usual cost.
        """
        for model in (self.model, self.weaker):
            if model is not None:
                model.prepare(times)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows, B = self._guided_rows(t), len(x)
        if rows is None:
            return self.model(x, t, slice(B))
        guided_t = t[rows] if t.ndim else t
        if self.weaker is not None:
            cond = self.model(x, t, slice(B))
            weak = self.weaker(x[rows], guided_t, rows)
        elif isinstance(rows, slice):
            outputs = self.model(torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t, slice(None))
            cond, weak = outputs.chunk(2)
        else:
            stacked_rows = torch.cat([torch.ones_like(rows), rows])  # (2·B,): all conditional rows, some null ones
            outputs = self.model(torch.cat([x, x[rows]]), torch.cat([t, guided_t]), stacked_rows)
            cond, weak = outputs.tensor_split([B])
        output = cond.clone()  # the guided rows are replaced, and autograd may still need the others
        output[rows] = guide(cond[rows], weak, self.guidance.scale, self.guidance.channels)
        return output

    def _guided_rows(self, t: torch.Tensor) -> slice | torch.Tensor | None:
        """Which rows to guide: None for none, a slice for all, or (B,) bool where times differ."""
        if not self.guidance.is_active:
            return None
        start, end = self.guidance.interval
        inside = (t >= start) & (t <= end)
        if not inside.any():
            return None
        return slice(None) if inside.all() else inside


def guide(cond: torch.Tensor, weak: torch.Tensor, scale: float, channels: int | None) -> torch.Tensor:
    """weak + scale·(cond − weak) in the first `channels` channels (None: all), cond in the others."""
    moved = torch.lerp(weak[:, :channels], cond[:, :channels], scale)
    return moved if channels is None else torch.cat([moved, cond[:, channels:]], dim=1)
