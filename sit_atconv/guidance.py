"""Classifier-free guidance (arXiv 2207.12598) as a function of (x, t), for any solver."""

import torch


class GuidedModel:
    """The network with its labels bound and its prediction guided: `model(x, t)` -> raw output, float32.

    Where guidance applies, the network runs on 2·B rows, the conditional and the null-class half; elsewhere on B.

    Args:
        transformer: a `SiTTransformer2DModel` in eval mode.
        class_labels: (B,) ids on the transformer's device.
        guidance_scale: s in uncond + s·(cond − uncond); 1 is no guidance.
        guidance_interval: guide while start ≤ t ≤ end (arXiv 2404.07724).
        guidance_channels: guide the first so many channels, the others stay conditional; None means all.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        class_labels: torch.Tensor,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
    ):
        self.transformer = transformer
        self.class_labels = class_labels
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.guidance_channels = guidance_channels
        if guidance_scale != 1.0:
            self.null_labels = torch.full_like(class_labels, transformer.null_class)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows = self._guided_rows(t)
        if rows is None:
            return self._run(x, t, self.class_labels)
        stacked_t = torch.cat([t, t[rows]]) if t.ndim else t
        stacked_labels = torch.cat([self.class_labels, self.null_labels[rows]])
        cond, uncond = self._run(torch.cat([x, x[rows]]), stacked_t, stacked_labels).tensor_split([len(x)])
        cond[rows] = guide(cond[rows], uncond, self.guidance_scale, self.guidance_channels)
        return cond

    def _guided_rows(self, t: torch.Tensor) -> slice | torch.Tensor | None:
        """Which rows to guide: None for none, a slice for all, or (B,) bool where times differ."""
        if self.guidance_scale == 1.0:
            return None
        start, end = self.guidance_interval
        inside = (t >= start) & (t <= end)
        if not inside.any():
            return None
        return slice(None) if inside.all() else inside

    def _run(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        dtype = self.transformer.dtype
        return self.transformer(x.to(dtype), t, labels, return_dict=False)[0].float()


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float, channels: int | None) -> torch.Tensor:
    """uncond + scale·(cond − uncond) in the first `channels` channels (None: all), cond in the others."""
    moved = torch.lerp(uncond[:, :channels], cond[:, :channels], scale)
    return moved if channels is None else torch.cat([moved, cond[:, channels:]], dim=1)
