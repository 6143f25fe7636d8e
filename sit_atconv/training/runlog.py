"""What a run tells about itself while it trains: numbers of each step, metrics.jsonl, a plot, how it was started."""

import json
import os
import platform
import shlex
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..utils.environment import device_name, git_commit, package_versions
from ..utils.files import write_atomically

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


def plot_metrics(file: Path, picture: Path) -> None:
    """Draw loss, loss by time and gradient norm over the steps of metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(file) if line.get("loss") is not None]
    if not lines:
        return
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(14, 4))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.12, wspace=0.15)
    loss, by_time, norm = figure.subplots(1, 3)
    loss.plot(steps, [line["loss"] for line in lines])
    loss.set(title="loss", xlabel="step")
    for i in range(TIME_BINS):
        values = [float("nan") if line["loss_by_time"][i] is None else line["loss_by_time"][i] for line in lines]
        shade = i / (TIME_BINS - 1)
        by_time.plot(steps, values, color=(shade, 0.4, 1 - shade), label=f"t = {(i + 0.5) / TIME_BINS:.2f}")
    by_time.set(title="loss by time (t=0 noise, t=1 data)", xlabel="step")
    by_time.legend(fontsize="x-small", ncols=2)
    norm.plot(steps, [line["grad_norm"] for line in lines])
    norm.set(title="gradient norm before clipping", xlabel="step")
    staging = picture.with_name(f".{picture.name}")
    FigureCanvasAgg(figure).print_png(staging)
    staging.replace(picture)


def record_start(file: Path, step: int, processes: int, device: torch.device, mixed_precision: str) -> None:
    """Append to starts.jsonl how the run was started or continued: command, versions, machine."""
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "from_step": step,
        "command": shlex.join(sys.argv),
        "processes": processes,
        "device": device_name(device),
        "mixed_precision": mixed_precision,
        "host": platform.node(),
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "versions": package_versions(),
        "commit": git_commit(),
    }
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(start) + "\n")


def scalars(values: dict) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl as trackers take them; loss by time as one number for each part."""
    by_time = {f"loss_by_time/{i}": value for i, value in enumerate(values["loss_by_time"])}
    return {
        key: value for key, value in (values | by_time).items() if isinstance(value, (int, float)) and value is not None
    }


def tracker_config(config) -> dict[str, int | float | str | bool]:
    """A configuration (a dataclass) as all trackers take it: what is no number becomes text."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in asdict(config).items()
    }


def tracker_options(config) -> dict[str, dict]:
    """What W&B and trackio are told besides the project's name, the run folder's: which run to start, or to continue.

    Its id is in tracker_id.txt in the run folder, which is written where it is not there.
    """
    if config.log_with not in ("wandb", "trackio"):
        return {}
    file = Path(config.output_dir) / "tracker_id.txt"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:8])
    run = file.read_text(encoding="utf-8").strip()
    if config.log_with == "wandb":
        return {"wandb": {"dir": config.output_dir, "id": run, "resume": "allow"}}
    return {"trackio": {"name": run, "resume": "allow"}}
