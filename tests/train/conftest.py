import signal
import sys
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
