"""What one training step reports, and how it reaches the host without making it wait for the GPU."""

from collections import deque
from collections.abc import Iterator

import torch

TIME_BINS = 10  # of the loss over t in [0, 1]


class StepReports:
    """Brings a few numbers of each step to the host, in order, without making it wait for the GPU.

    On a GPU, the numbers of one step are read after the next one has been queued, on every process alike; on a CPU at
    once.
    """

    def __init__(self, device: torch.device):
        self.lag = 1 if device.type == "cuda" else 0
        self._sent: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()

    def send(self, step: int, numbers: torch.Tensor) -> None:
        """Start to copy the numbers (n,) of a step."""
        event = None
        if numbers.is_cuda:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent.append((step, numbers, event))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """The steps that have not been read yet, but for the newest unless `wait`."""
        while len(self._sent) > (0 if wait else self.lag):
            step, numbers, event = self._sent.popleft()
            if event is not None:
                event.synchronize()
            yield step, numbers.tolist()


def time_bin_sums(losses: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Sum and number of the losses (B,) in each part of [0, 1] that t (B,) falls into: (2·TIME_BINS,)."""
    place = (t * TIME_BINS).long().clamp(0, TIME_BINS - 1)
    sums = torch.zeros(2, TIME_BINS, device=losses.device)
    return sums.index_add_(
        1, place, torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
    ).flatten()
