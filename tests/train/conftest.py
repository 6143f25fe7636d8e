import signal
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parents[2] / "train"))


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Each training starts as in a new process: no accelerator set up, no signal handlers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
