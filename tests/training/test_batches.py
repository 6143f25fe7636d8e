"""Which data worker died, and how."""

import multiprocessing
import os
import signal
import time

import pytest

from sit_atconv.training.batches import dead_worker

FORK = multiprocessing.get_context("fork")


def close_files_and_end(code: int) -> None:
    """End like a process that the system is slow to clean up: its files close before it has an exit code."""
    os.closerange(3, 4096)
    time.sleep(0.2)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


@pytest.mark.parametrize(
    "code, message",
    [
        (7, "a data worker died with exit code 7"),
        (-signal.SIGKILL, "a data worker died: it was killed by SIGKILL, as the system does when memory runs out"),
    ],
)
def test_a_worker_that_is_still_ending_has_died(code, message):
    alive = FORK.Process(target=time.sleep, args=(60,), daemon=True)
    ending = FORK.Process(target=close_files_and_end, args=(code,), daemon=True)
    alive.start()
    ending.start()
    assert dead_worker([alive, ending]) == message
    alive.kill()
    alive.join()


def test_without_workers_none_has_died():
    assert dead_worker([]) is None
