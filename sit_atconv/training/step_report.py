"""What one training step reports, and how it reaches the host without making it wait for the GPU."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

TIME_BINS = 10  # equal parts of [0, 1], over which the loss is logged by time


@dataclass
class StepReport:
    """The numbers of one step. Processes sum them as one small tensor, and the host reads them late as one copy.

    Args:
        stop: () number of processes that ask the run to stop.
        alignment: () mean alignment loss of REPA over the batch.
        loss_sums: (TIME_BINS,) sum of the losses whose time falls into each bin.
        loss_counts: (TIME_BINS,) number of these losses.
        applied: () 1 if the update was applied, 0 if it was skipped because something was not finite.
        grad_norm: () norm of the gradient before clipping.
    """

    stop: torch.Tensor
    alignment: torch.Tensor
    loss_sums: torch.Tensor
    loss_counts: torch.Tensor
    applied: torch.Tensor
    grad_norm: torch.Tensor

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> "StepReport":
        """A report to which nothing has been added yet."""
        return cls.unpack(torch.zeros(4 + 2 * TIME_BINS, device=device))

    def add_losses(self, losses: torch.Tensor, t: torch.Tensor) -> None:
        """Add losses (B,) to the bins of their times t (B,)."""
        bins = (t * TIME_BINS).long().clamp(0, TIME_BINS - 1)
        losses = losses.float()
        self.loss_sums += torch.zeros_like(self.loss_sums).index_add_(0, bins, losses)
        self.loss_counts += torch.zeros_like(self.loss_counts).index_add_(0, bins, torch.ones_like(losses))

    def pack(self) -> torch.Tensor:
        """All numbers in one new tensor: (4 + 2·TIME_BINS,)."""
        scalars = torch.stack([self.stop, self.alignment, self.applied, self.grad_norm])
        return torch.cat([scalars, self.loss_sums, self.loss_counts])

    @classmethod
    def unpack(cls, packed: torch.Tensor) -> "StepReport":
        """The inverse of `pack`; the fields share the memory of the packed tensor."""
        scalars, loss_sums, loss_counts = packed.split([4, TIME_BINS, TIME_BINS])
        stop, alignment, applied, grad_norm = scalars.unbind()
        return cls(stop, alignment, loss_sums, loss_counts, applied, grad_norm)


class StepReports:
    """Bring the reports to the host, in order, without making it wait for the GPU.

    On a GPU, the report of a step is read after the next step has been queued, by every process alike; on a CPU it is
    read immediately.
    """

    def __init__(self, device: torch.device):
        self.lag = 1 if device.type == "cuda" else 0
        self._sent: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()

    def send(self, step: int, report: StepReport) -> None:
        """Start to copy the report of a step."""
        numbers, event = report.pack(), None
        if numbers.is_cuda:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent.append((step, numbers, event))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, StepReport]]:
        """The reports that have not been read yet, except the newest ones unless `wait`."""
        while len(self._sent) > (0 if wait else self.lag):
            step, numbers, event = self._sent.popleft()
            if event is not None:
                event.synchronize()
            yield step, StepReport.unpack(numbers)
