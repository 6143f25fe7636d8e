import multiprocessing
import os
import signal
import threading
import time

import pytest

from sit_atconv.training import signals
from sit_atconv.training.signals import StopSignals


def _stubborn(pipe) -> None:
    with StopSignals() as stop:
        pipe.send("ready")
        threading.Event().wait(1)  # the main thread is busy
        while True:
            pipe.send(stop.requested)
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_same_signal_later_means_now_and_an_echo_does_not(number, monkeypatch):
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.5)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_stubborn, args=(theirs,))
    child.start()
    assert ours.recv() == "ready"
    os.kill(child.pid, number)
    os.kill(child.pid, number)  # the same request, from the terminal and from the launcher
    assert ours.poll(5)
    assert ours.recv() is True
    time.sleep(signals.ECHO_SECONDS)
    for other in {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT} - {number}:  # as from a scheduler, one by one
        os.kill(child.pid, other)
    time.sleep(0.1)
    assert child.is_alive()
    os.kill(child.pid, number)
    child.join(5)
    assert child.exitcode == 128 + number
