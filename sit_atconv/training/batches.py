"""The batches of one process, and what happens if a data worker dies."""

import copy
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data import TrainingOrder
from .config import CommonConfig
from .signals import end_workers, obey_parent_alone
from .task import Task

HINTS = {
    "SIGKILL": ", as the system does when memory runs out",
    "SIGBUS": ", as the system does when shared memory (/dev/shm) runs out or a file is cut short while it is read",
}


class Batches(Iterator[dict[str, Any]]):
    """The batches of a loader whose batch sampler is a `TrainingOrder`.

    If a data worker dies, the batch that is due is read by this process itself. All processes can thus make the same
    update once more and stop with a checkpoint, as after a stop signal.

    PyTorch reports a dead worker by raising RuntimeError wherever the main thread happens to be, also in the middle of
    an update. That is switched off until `close`; the death shows when a batch does not come.

    Args:
        loader: the loader; its workers are started immediately.

    Attributes:
        failure: which data worker died and how, or None.
    """

    def __init__(self, loader: DataLoader[dict[str, Any]]):
        self.failure: str | None = None
        self._loader, self._given = loader, 0
        self._batches, self._workers = start_workers(loader)
        self._handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if self._workers else None

    def __next__(self) -> dict[str, Any]:
        try:
            batch = next(self._batches)
        except Exception:
            self.failure = dead_worker(self._workers)
            if self.failure is None:
                raise
            print(f"\n{self.failure}; this process reads the batch itself", file=sys.stderr)
            batch = self._read_here()
        self._given += 1
        return batch

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        end_workers(self._workers)
        if self._handler is not None:
            signal.signal(signal.SIGCHLD, self._handler)
        self._workers, self._handler = [], None

    def _read_here(self) -> dict[str, Any]:
        order = copy.copy(self._loader.batch_sampler)
        order.steps = order.steps[self._given :]  # type: ignore[union-attr]  # it is a TrainingOrder
        keys = next(iter(order))  # type: ignore[arg-type]
        return self._loader.collate_fn([self._loader.dataset[key] for key in keys])


def build_loader(
    config: CommonConfig, task: Task, accelerator: Accelerator, start_step: int
) -> DataLoader[dict[str, Any]]:
    """Build the loader of this process's batches, from the step after `start_step` to the last one."""
    view = task.view()
    order = TrainingOrder(
        len(task.dataset),
        config.batch_size,
        config.seed,
        start_step,
        config.max_steps,
        accelerator.process_index,
        accelerator.num_processes,
        task.epoch_order,
    )
    return DataLoader(
        view,
        batch_sampler=order,
        num_workers=config.num_workers,
        collate_fn=view.collate,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=obey_parent_alone,
    )


def start_workers(loader: DataLoader) -> tuple[Iterator, list[BaseProcess]]:
    """Return the iterator of a loader, and the worker processes that it has started."""
    before = set(multiprocessing.active_children())
    batches = iter(loader)
    return batches, [each for each in multiprocessing.active_children() if each not in before]


def dead_worker(workers: list[BaseProcess]) -> str | None:
    """Describe the first data worker that has ended, if one has."""
    if not workers:
        return None
    ended = wait([worker.sentinel for worker in workers], timeout=1)  # it may be about to end
    first = next((worker for worker in workers if worker.sentinel in ended), None)
    if first is None:
        return None
    first.join()  # a process closes its files, and thus its sentinel, a little before it has an exit code
    code = first.exitcode
    assert code is not None
    if code >= 0:
        return f"a data worker died with exit code {code}"
    name = str(-code)
    with suppress(ValueError):
        name = signal.Signals(-code).name
    return f"a data worker died: it was killed by {name}{HINTS.get(name, '')}"
