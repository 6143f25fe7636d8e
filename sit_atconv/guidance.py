"""Guidance as a function of (x, t), for any solver: classifier-free (arXiv 2207.12598) or by a weaker model
(autoguidance, arXiv 2406.02507)."""

from contextlib import contextmanager

import torch


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


class GuidedModel:
    """The network with its labels bound and its prediction guided: `model(x, t)` -> raw output, float32.

    Where guidance applies, the network runs on 2·B rows, the conditional and the null-class half; elsewhere on B. With
    a `guidance_model`, that model runs on B rows in place of the null-class half.

    Args:
        transformer: a `SiTTransformer2DModel` in eval mode.
        class_labels: (B,) ids on the transformer's device.
        guidance_scale: s in uncond + s·(cond − uncond); 1 is no guidance.
        guidance_interval: guide while start ≤ t ≤ end (arXiv 2404.07724).
        guidance_channels: guide the first so many channels, the others stay conditional; None means all.
        guidance_model: a weaker model of the same prediction; guidance then leads away from it.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        class_labels: torch.Tensor,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        guidance_model: torch.nn.Module | None = None,
    ):
        self.transformer = transformer
        self.class_labels = class_labels
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.guidance_channels = guidance_channels
        self.guidance_model = guidance_model
        if guidance_scale != 1.0 and guidance_model is None:
            self.null_labels = torch.full_like(class_labels, transformer.null_class)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows = self._guided_rows(t)
        if rows is None:
            return run(self.transformer, x, t, self.class_labels)
        guided_t = t[rows] if t.ndim else t
        if self.guidance_model is not None:
            cond = run(self.transformer, x, t, self.class_labels)
            weak = run(self.guidance_model, x[rows], guided_t, self.class_labels[rows])
        else:
            stacked_t = torch.cat([t, guided_t]) if t.ndim else t
            stacked_labels = torch.cat([self.class_labels, self.null_labels[rows]])
            outputs = run(self.transformer, torch.cat([x, x[rows]]), stacked_t, stacked_labels)
            cond, weak = outputs.tensor_split([len(x)])
        output = cond.clone()  # the guided rows are replaced, and autograd may still need the others
        output[rows] = guide(cond[rows], weak, self.guidance_scale, self.guidance_channels)
        return output

    def _guided_rows(self, t: torch.Tensor) -> slice | torch.Tensor | None:
        """Which rows to guide: None for none, a slice for all, or (B,) bool where times differ."""
        if self.guidance_scale == 1.0:
            return None
        start, end = self.guidance_interval
        inside = (t >= start) & (t <= end)
        if not inside.any():
            return None
        return slice(None) if inside.all() else inside


def run(transformer: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One network call in the network's own precision; float32 in and out."""
    if not t.ndim and t.device != x.device:
        # Filled in there: copying one number to a GPU would make the CPU wait for all that the GPU has yet to do.
        t = torch.full((len(x),), t.item(), device=x.device)
    return transformer(x.to(transformer.dtype), t, labels, return_dict=False)[0].float()


def guide(cond: torch.Tensor, weak: torch.Tensor, scale: float, channels: int | None) -> torch.Tensor:
    """weak + scale·(cond − weak) in the first `channels` channels (None: all), cond in the others."""
    moved = torch.lerp(weak[:, :channels], cond[:, :channels], scale)
    return moved if channels is None else torch.cat([moved, cond[:, channels:]], dim=1)
