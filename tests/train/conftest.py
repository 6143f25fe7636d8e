import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from sit_atconv.training import trainer

sys.path.insert(0, str(Path(__file__).parents[2] / "train"))


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Each training starts as in a new process: no accelerator set up, no signal handlers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is known of shards goes into a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plots take longer than these trainings; the tests of the run log draw some."""
    monkeypatch.setattr(trainer, "plot_metrics", lambda *_: None)


@pytest.fixture
def processes():
    """Function: run `function(rank)` in `count` forked CPU processes that know of each other, as under a launcher.

    Returns their exit codes. Forks spare the seconds that each new Python takes to import everything.
    """

    def run(count: int, function: Callable[[int], None]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def member(rank: int) -> None:
            os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
            os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
            AcceleratorState._reset_state(reset_partial_state=True)
            function(rank)
            os._exit(0)

        children = [multiprocessing.get_context("fork").Process(target=member, args=(rank,)) for rank in range(count)]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
            child.kill()
        return [child.exitcode for child in children]

    return run
