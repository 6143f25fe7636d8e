"""metrics.jsonl: the numbers of a run, averaged over the steps between two of its lines."""

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..utils.checks import is_number
from ..utils.files import open_to_append, write_atomically
from .checkpoints import CORRUPT
from .step_report import TIME_BINS, StepReport

T = TypeVar("T")


@dataclass
class Window:
    """Sums over the steps since the last line of metrics.jsonl.

    They are part of a checkpoint, so that a resumed run writes the same next line as an uninterrupted one.
    """

    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    grad_norm: float = 0.0
    grad_norm_max: float = 0.0
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * TIME_BINS)
    loss_counts: list[float] = field(default_factory=lambda: [0.0] * TIME_BINS)
    alignment: float = 0.0

    @classmethod
    def restored(cls, values: dict[str, Any]) -> "Window":
        """The window of a checkpoint.

        Raises:
            ValueError: if these are not the values of a window.
        """
        for name, value in asdict(cls()).items():
            found = values.get(name)
            numbers, count = (found, TIME_BINS) if isinstance(value, list) else ([found], 1)
            if not isinstance(numbers, list) or len(numbers) != count or not all(map(is_number, numbers)):
                raise ValueError(f"the checkpoint's window of losses is damaged: {name} is {found!r}")
        return cls(**{name: values[name] for name in asdict(cls())})

    def add(self, report: StepReport) -> None:
        """Add the report of an applied step."""
        grad_norm = report.grad_norm.item()
        self.steps += 1
        self.skipped_in_a_row = 0
        self.grad_norm += grad_norm
        self.grad_norm_max = max(self.grad_norm_max, grad_norm)
        self.loss_sums = [a + b for a, b in zip(self.loss_sums, report.loss_sums.tolist(), strict=True)]
        self.loss_counts = [a + b for a, b in zip(self.loss_counts, report.loss_counts.tolist(), strict=True)]
        self.alignment += report.alignment.item()

    def skip(self) -> None:
        """Count a step that was not applied."""
        self.skipped += 1
        self.skipped_in_a_row += 1

    def close(self, has_times: bool = True) -> dict[str, Any]:
        """Return the means of the window and start the next one; None for means over nothing.

        Args:
            has_times: whether losses belong to times. If not, "loss_by_time" is None, and there is no alignment.
        """
        values = {
            "loss": _ratio(sum(self.loss_sums), sum(self.loss_counts)),
            "loss_by_time": [_ratio(a, b) for a, b in zip(self.loss_sums, self.loss_counts, strict=True)],
            "grad_norm": _ratio(self.grad_norm, self.steps),
            "grad_norm_max": self.grad_norm_max if self.steps else None,
            "alignment_loss": _ratio(self.alignment, self.steps),
            "skipped_steps": self.skipped,
        }
        self.__dict__.update(asdict(Window(skipped_in_a_row=self.skipped_in_a_row)))
        if not has_times:
            values["loss_by_time"] = None
            del values["alignment_loss"]
        return values


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None


class Stopwatch:
    """The speed of the run, and the share of time in which it waited for data, since the last reading."""

    def __init__(self) -> None:
        self._start, self.waited = time.perf_counter(), 0.0

    def next(self, iterator: Iterator[T]) -> T:
        """Return the iterator's next item; the time that this takes counts as waiting for data."""
        start = time.perf_counter()
        item = next(iterator)
        self.waited += time.perf_counter() - start
        return item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside, for example on a checkpoint."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, images: int) -> dict[str, float]:
        """Return images per second and the share of time spent waiting for data since the last call.

        Args:
            images: number of images since the last reading.
        """
        now = time.perf_counter()
        values = {
            "images_per_second": images / (now - self._start),
            "data_wait": self.waited / (now - self._start),
        }
        self._start, self.waited = now, 0.0
        return values


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB: allocated memory on a GPU, resident memory otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class MetricsFile:
    """metrics.jsonl, with one line per window and one for each skipped step.

    Args:
        file: the file to append to.
        start_step: step from which the run continues. Lines of later steps are dropped, since these steps are repeated.
            If other lines are damaged, the file is kept as metrics.jsonl.corrupt, and a warning says so.
    """

    def __init__(self, file: Path, start_step: int):
        content = file.read_bytes() if file.exists() else b""
        lines = read_metrics(file)
        if len(lines) < content.count(b"\n"):
            aside = file.with_name(file.name + CORRUPT)
            write_atomically(aside, content)
            warnings.warn(
                f"{file} has damaged lines, which are left out; as it was, it is kept as {aside}", stacklevel=3
            )
        lines = [line for line in lines if line["step"] <= start_step]
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
        self._opened = open_to_append(file)

    def write(self, step: int, **values: Any) -> None:
        """Append a line and flush it."""
        self._opened.write(json.dumps({"step": step, **values}) + "\n")

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, without a last line that a kill cut short, and without damaged lines."""
    return [line for line in list_lines(file) if _is_whole(line)]


def list_lines(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a JSON-lines file that name a step; none if there is no file."""
    lines = []
    for line in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and type(values.get("step")) is int:
            lines.append(values)
    return lines


def _is_whole(line: dict[str, Any]) -> bool:
    """Whether this is a line that `MetricsFile` has written: that of a skipped step, or that of a window."""
    by_time = line.get("loss_by_time")
    numbers = [line.get("grad_norm"), line.get("loss"), *_parts([None] * TIME_BINS if by_time is None else by_time)]
    is_window = len(numbers) == 2 + TIME_BINS and all(each is None or type(each) in (int, float) for each in numbers)
    return line.get("skipped") is True or (is_window and {"loss", "loss_by_time", "grad_norm"} <= line.keys())


def _parts(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []
