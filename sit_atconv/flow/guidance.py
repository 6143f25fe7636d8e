"""Guidance as a function of (x, t), for any solver: classifier-free (arXiv 2207.12598) or by a weaker model
(autoguidance, arXiv 2406.02507).

x (B, C, h, w), t () or (B,) in [0, 1] with t=0 noise, t=1 data. cond: prediction for the label; weak: prediction for
the null class, or of the weaker model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..utils.checks import plain_numbers
from .choices import check_guidance
from .conditioning import LabelledModel


@dataclass(frozen=True)
class Guidance:
    """Strength, time interval, channels and guiding model of guidance.

    Error messages use the names that the arguments have in `SiTPipeline`: `scale` is `guidance_scale` there, and so on.

    Args:
        scale: s in weak + s·(cond − weak); 1 applies no guidance and costs nothing.
        interval: guidance is applied for start ≤ t ≤ end only (arXiv 2404.07724); t=0 is noise, t=1 data.
        channels: the number of leading channels to guide; the other channels stay conditional. If None, all channels.
        model: a weaker model with the same prediction, which replaces the null class as the weak prediction.
        guider: a guider of diffusers that combines a conditional and a weak prediction in another way, such as
            `AdaptiveProjectedGuidance` or `ClassifierFreeZeroStarGuidance`. It has a scale of its own, and `scale` is
            then 1.

    Raises:
        ValueError: if a value is out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    model: torch.nn.Module | None = None
    guider: Any = None

    def __post_init__(self):
        check_guidance(self.scale, self.interval, self.channels)
        if self.model is not None and not isinstance(self.model, torch.nn.Module):
            raise ValueError(f"guidance_model={self.model!r} must be a model, such as SiTTransformer2DModel, or None")
        check_guider(self.guider, self.scale)
        for name, value in plain_numbers(vars(self)).items():
            object.__setattr__(self, name, value)

    @property
    def is_active(self) -> bool:
        """Whether the guided prediction differs from the conditional one."""
        return self.scale != 1.0 or self.guider is not None

    def check(self, transformer: ModelMixin) -> None:
        """Raise ValueError if this guidance cannot be applied to the `SiTTransformer2DModel`."""
        config = transformer.config
        trained_scale = config.get("trained_guidance_scale", 1)
        given = f"guidance_scale={self.scale}" if self.guider is None else f"guider={type(self.guider).__name__}"
        if self.is_active and trained_scale != 1:
            raise ValueError(
                f"{given}: this model was trained to predict what guidance with scale {trained_scale:g} gives, and "
                "would be guided twice; use guidance_scale=1 alone, which costs nothing"
            )
        if self.is_active and self.model is None and config.class_dropout_prob == 0:
            raise ValueError(
                f"{given}: this model was trained without class dropout and cannot be guided by the null class; use "
                "guidance_scale=1, or a guidance_model, such as sit_atconv.models.weakened.perturb_mixers makes"
            )
        if self.channels is not None and self.channels > config.in_channels:
            raise ValueError(f"guidance_channels={self.channels} must be between 1 and {config.in_channels}")
        check_same_channels(transformer)
        if self.is_active and self.model is not None:
            check_same_channels(self.model, "guidance_model")
            weaker = getattr(self.model, "config", config)
            for field in ("in_channels", "num_classes"):
                if weaker[field] != config[field]:
                    raise ValueError(
                        f"guidance_model has {field}={weaker[field]}, but the model that it guides has "
                        f"{config[field]}; they must agree"
                    )


def check_guider(guider: Any, scale: float) -> None:
    """Raise ValueError unless this is None, or a guider of two predictions, with nothing else that scales."""
    if guider is None:
        return
    prepares = getattr(type(guider), "prepare_models", None)  # AutoGuidance weakens the model itself
    combines = getattr(guider, "_input_predictions", None) == ["pred_cond", "pred_uncond"]
    if not combines or getattr(prepares, "__qualname__", "") != "BaseGuidance.prepare_models":
        raise ValueError(
            f"guider is a {type(guider).__name__}; give one of diffusers that combines two predictions, such as "
            "AdaptiveProjectedGuidance or ClassifierFreeZeroStarGuidance, and a weaker model as guidance_model"
        )
    if scale != 1:
        raise ValueError(f"guidance_scale={scale}: the guider has a scale of its own; leave guidance_scale out")


def check_same_channels(transformer: ModelMixin, name: str = "transformer") -> None:
    """Raise ValueError unless the output of a `SiTTransformer2DModel` has as many channels as its input."""
    config = getattr(transformer, "config", {})
    if config.get("out_channels") not in (None, config.get("in_channels")):
        raise ValueError(
            f"{name}: out_channels={config['out_channels']} and in_channels={config['in_channels']} must be equal to "
            "sample with it; leave out_channels out"
        )


class GuidedModel:
    """A network with its labels bound and its prediction guided: `model(x, t)` -> raw output, float32.

    `model(x, t, s)` is that of a step from t to s, of a network of mean velocities.

    While guidance applies, the network runs on 2·B rows, the conditional and the null-class half; otherwise on B. With
    `guidance.model`, that model runs on B rows in place of the null-class half.

    Args:
        transformer: a `SiTTransformer2DModel` in eval mode.
        class_labels: ids (B,), or weights (B, num_classes) of the classes, on the transformer's device.
        guidance: how to guide. If None, the prediction is not guided.

    Raises:
        ValueError: if guidance needs a null class and the transformer has none.
    """

    def __init__(self, transformer: ModelMixin, class_labels: torch.Tensor, guidance: Guidance | None = None):
        self.guidance = guidance or Guidance()
        self.can_guide = self.guidance.is_active  # `guidance` may be replaced between two calls
        self.guider = None
        if self.guidance.guider is not None:
            self.guider = copy.deepcopy(self.guidance.guider)  # its state begins here; new() loses positional arguments
            self.guider.set_state(0, None, None)
            self.guider.prepare_inputs({})
        self.calls = 0  # of this model, which are the steps of a guider
        self.num_calls: int | None = None
        self.weaker = None
        if self.guidance.is_active and self.guidance.model is not None:
            self.weaker = LabelledModel(self.guidance.model, class_labels)
        elif self.guidance.is_active:
            class_labels = with_null_class(class_labels, transformer.null_class)  # (2·B, …)
        self.model = LabelledModel(transformer, class_labels)

    @property
    def models(self) -> list[torch.nn.Module]:
        """The networks that are called."""
        return [model.transformer for model in (self.model, self.weaker) if model is not None]

    def prepare(self, times: Sequence[float] | Sequence[tuple[float, float]]) -> None:
        """Compute what time and class do to the network for a whole solve; see `LabelledModel.prepare`."""
        self.num_calls = len(times) or None
        for model in (self.model, self.weaker):
            if model is not None:
                model.prepare(times)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor | None = None) -> torch.Tensor:
        assert s is None or s.ndim == 0  # the steps of a batch are the same
        self.calls += 1
        rows, B = self._guided_rows(t), len(x)
        if rows is None:
            return self.model(x, t, slice(B), s)
        guided_t = t[rows] if t.ndim else t
        if self.weaker is not None:
            cond = self.model(x, t, slice(B), s)
            weak = self.weaker(x[rows], guided_t, rows, s)
        elif isinstance(rows, slice):
            outputs = self.model(torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t, slice(None), s)
            cond, weak = outputs.chunk(2)
        else:
            stacked_rows = torch.cat([torch.ones_like(rows), rows])  # (2·B,): all conditional rows, some null ones
            outputs = self.model(torch.cat([x, x[rows]]), torch.cat([t, guided_t]), stacked_rows, s)
            cond, weak = outputs.tensor_split([B])
        output = cond.clone()  # the guided rows are replaced, and autograd may still need the others
        output[rows] = self._guide(cond[rows], weak)
        return output

    def _guide(self, cond: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        channels = self.guidance.channels
        if self.guider is None:
            return guide(cond, weak, self.guidance.scale, channels)
        self.guider.set_state(self.calls - 1, self.num_calls, None)
        moved = self.guider.forward(cond[:, :channels], weak[:, :channels]).pred
        return moved if channels is None else torch.cat([moved, cond[:, channels:]], dim=1)

    def _guided_rows(self, t: torch.Tensor) -> slice | torch.Tensor | None:
        """Which rows to guide: None for no row, a slice for all rows, or a (B,) bool mask if times differ."""
        if not self.guidance.is_active:
            return None
        start, end = self.guidance.interval
        inside = (t >= start) & (t <= end)
        if not inside.any():
            return None
        return slice(None) if inside.all() else inside


def with_null_class(labels: torch.Tensor, null_class: int) -> torch.Tensor:
    """Labels (B,), or weights (B, null_class) of classes, and as many rows of the null class below: (2·B, …)."""
    if not labels.is_floating_point():
        return torch.cat([labels, torch.full_like(labels, null_class)])
    weights = labels.new_zeros(2 * len(labels), null_class + 1)
    weights[: len(labels), :null_class] = labels
    weights[len(labels) :, null_class] = 1
    return weights


def guide(cond: torch.Tensor, weak: torch.Tensor, scale: float, channels: int | None) -> torch.Tensor:
    """weak + scale·(cond − weak) in the first `channels` channels (all if None), and cond in the others."""
    moved = torch.lerp(weak[:, :channels], cond[:, :channels], scale)
    return moved if channels is None else torch.cat([moved, cond[:, channels:]], dim=1)
