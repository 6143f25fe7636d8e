"""A transformer whose outputs are targets: a teacher, or the trained network itself without its wrappers.

t=0 noise, t=1 data. B images, C channels of size S × S.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from ..models.transformer_sit import SiTTransformer2DModel


class TargetNetwork:
    """A transformer with the labels of a batch bound, without gradients: `BoundNetwork` of the loss.

    Args:
        transformer: in training mode, in which labels can be dropped.
        labels: (B,) class ids.
        dropped: (B,) bool, the labels that are dropped.
        autocast: the precision of the run.
    """

    def __init__(
        self,
        transformer: SiTTransformer2DModel,
        labels: torch.Tensor,
        dropped: torch.Tensor,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.transformer = transformer
        self.labels = labels
        self.dropped = dropped
        self.autocast = autocast

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, rows: torch.Tensor | slice, unconditional: bool = False
    ) -> torch.Tensor:
        dropped = (torch.ones_like(self.dropped) if unconditional else self.dropped)[rows]
        end = {} if self.transformer.config.step_conditioning == "none" else {"end_timestep": s}
        with torch.no_grad(), self.autocast():
            labels = self.labels[rows]
            output = self.transformer(x, t, labels, class_dropout=dropped, return_dict=False, **end)[0]
        return output.to(x.dtype)
