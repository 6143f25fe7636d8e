"""metrics.jsonl: the numbers of a run, averaged over the steps between two of its lines."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..utils.files import write_atomically
from .step_report import TIME_BINS


@dataclass
class Window:
    """Sums since the last line of metrics.jsonl; part of a checkpoint, so that the next line is the same after it."""

    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    grad_norm: float = 0.0
    grad_norm_max: float = 0.0
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * TIME_BINS)
    loss_counts: list[float] = field(default_factory=lambda: [0.0] * TIME_BINS)
    alignment: float = 0.0

    def add(self, bins: list[float], grad_norm: float, alignment: float) -> None:
        """Take in an applied step: its `time_bin_sums`, the norm of its gradient and its mean alignment loss."""
        self.steps += 1
        self.skipped_in_a_row = 0
        self.grad_norm += grad_norm
        self.grad_norm_max = max(self.grad_norm_max, grad_norm)
        self.loss_sums = [a + b for a, b in zip(self.loss_sums, bins[:TIME_BINS], strict=True)]
        self.loss_counts = [a + b for a, b in zip(self.loss_counts, bins[TIME_BINS:], strict=True)]
        self.alignment += alignment

    def skip(self) -> None:
        """Take in a step that was not applied."""
        self.skipped += 1
        self.skipped_in_a_row += 1

    def close(self) -> dict:
        """The means of the window, which starts anew; None for what no step has contributed to."""
        values = {
            "loss": _ratio(sum(self.loss_sums), sum(self.loss_counts)),
            "loss_by_time": [_ratio(a, b) for a, b in zip(self.loss_sums, self.loss_counts, strict=True)],
            "grad_norm": _ratio(self.grad_norm, self.steps),
            "grad_norm_max": self.grad_norm_max if self.steps else None,
            "alignment_loss": _ratio(self.alignment, self.steps),
            "skipped_steps": self.skipped,
        }
        self.__dict__.update(asdict(Window(skipped_in_a_row=self.skipped_in_a_row)))
        return values


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None


class Stopwatch:
    """Speed of the run and the share of time in which it waited for data, since the last look."""

    def __init__(self):
        self._start, self.waited = time.perf_counter(), 0.0

    def next(self, iterator: Iterator):
        """The iterator's next item; the time that it takes is waiting for data."""
        start = time.perf_counter()
        item = next(iterator)
        self.waited += time.perf_counter() - start
        return item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within it, such as a checkpoint, does not count."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, images: int) -> dict[str, float]:
        """Images per second and the share of time spent waiting; starts anew."""
        now = time.perf_counter()
        values = {
            "images_per_second": images / (now - self._start),
            "data_wait": self.waited / (now - self._start),
        }
        self._start, self.waited = now, 0.0
        return values


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB: of the GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class MetricsFile:
    """metrics.jsonl: one line a window, and one for each step that was skipped.

    Args:
        file: to append to; lines of steps after `start_step`, which are about to be done again, are dropped.
    """

    def __init__(self, file: Path, start_step: int):
        lines = [line for line in read_metrics(file) if line["step"] <= start_step]
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
        self._opened = file.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, **values) -> None:
        """Append a line, at once."""
        self._opened.write(json.dumps({"step": step, **values}) + "\n")

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_) -> None:
        self._opened.close()


def read_metrics(file: Path) -> list[dict]:
    """The lines of metrics.jsonl; a last one that a kill cut short is left out."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
