"""Commands that are waited for."""

import os
import signal
import sys
import threading
import time

import pytest

from sit_atconv.evaluation.subprocesses import run_to_end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_training_is_waited_for(number, tmp_path):
    """The command ends by itself after the signal, as training does that writes its checkpoint first."""
    code = (
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (folder / 'stop').touch())\n"
        "(folder / 'ready').touch()\n"
        "while not (folder / 'stop').exists(): time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "(folder / 'checkpoint').touch()\n"
    )

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:  # a terminal sends it to all; here nobody tells the command
            (tmp_path / "stop").touch()

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, "-c", code, str(tmp_path)])
    thread.join()
    assert (tmp_path / "checkpoint").exists()
