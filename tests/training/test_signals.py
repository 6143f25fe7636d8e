import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sit_atconv.training import signals
from sit_atconv.training.signals import StopSignals, end_workers, obey_parent_alone


def _stubborn(pipe) -> None:
    with StopSignals() as stop:
        pipe.send("ready")
        threading.Event().wait(1)  # the main thread is busy
        while True:
            pipe.send(stop.requested)
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
    for other in {signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT} - {
        number
    }:  # as from a scheduler, one by one
        os.kill(child.pid, other)
    time.sleep(0.1)
    assert child.is_alive()
    os.kill(child.pid, number)
    child.join(5)
    assert child.exitcode == 128 + number


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_hangup_asks_to_stop_unless_it_is_ignored(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with StopSignals():
            assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) == ignored
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who sent a signal")


def _worker(pipe) -> None:
    obey_parent_alone()
    pipe.send(os.getpid())
    while pipe.recv():
        pipe.send("still here")


@linux
def test_worker_ends_for_its_own_process_alone():
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_worker, args=(theirs,))
    worker.start()
    pid = ours.recv()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # as to the whole job
        subprocess.run(["kill", f"-{number.value}", str(pid)], check=True)
    ours.send(True)
    assert ours.recv() == "still here"
    end_workers([worker])
    assert worker.exitcode == 0


@linux
def test_workers_end_although_a_signal_of_others_is_pending():
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_worker, args=(theirs,))
    worker.start()
    pid = ours.recv()
    os.kill(pid, signal.SIGSTOP)  # it does not see the first SIGTERM before the second one
    subprocess.run(["kill", "-TERM", str(pid)], check=True)
    threading.Timer(0.5, os.kill, (pid, signal.SIGCONT)).start()
    end_workers([worker])
    assert worker.exitcode == 0


def _parent_of_worker(pipe) -> None:
    multiprocessing.get_context("fork").Process(target=_worker, args=(pipe,)).start()
    signal.pause()


@linux
def test_worker_ends_with_its_process():
    ours, theirs = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(target=_parent_of_worker, args=(theirs,))
    parent.start()
    theirs.close()
    ours.recv()
    parent.kill()
    assert ours.poll(30)
    with pytest.raises((EOFError, ConnectionResetError)):  # nobody holds the other end any more
        ours.recv()
    parent.join(30)
