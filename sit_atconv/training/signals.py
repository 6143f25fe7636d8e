"""Stop signals: the first one asks a run to stop with a checkpoint, a repeated one ends it at once."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1: as Slurm warns, and when the launcher is gone
SAME_REQUEST = 3.0  # seconds; a terminal, srun and the launcher may each pass on one request


class StopSignals:
    """Turns the first stop signal into a request, and the same signal once more into an end at once.

    Within `SAME_REQUEST` seconds it is taken for an echo, also where a person has pressed Ctrl-C twice. A signal of
    another kind, as schedulers send one after the other, does not end the run at once, and SIGUSR1 never does.

    Python runs signal handlers between two lines of the main thread, which never come while that waits for a process
    that is gone. A thread therefore reads the signals. As a context manager it puts the former handlers back.

    Attributes:
        requested: whether a stop was asked for.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopSignals":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._pid = os.getpid()
        threading.Thread(target=self._watch, daemon=True).start()
        _signal_when_parent_dies(signal.SIGUSR1)
        return self

    def __exit__(self, *_) -> None:
        _signal_when_parent_dies(0)
        signal.set_wakeup_fd(self._fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._write.close()

    def _watch(self) -> None:
        first: dict[int, float] = {}  # when each signal came
        while received := self._read.recv(1):
            if received[0] not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            if not self.requested:
                self.requested = True
                name = signal.Signals(received[0]).name
                _say(
                    f"{name}: stopping after this step with a checkpoint; once more, after {SAME_REQUEST:g} seconds, "
                    "to stop without one"
                )
            elif now - first.get(received[0], now) > SAME_REQUEST and received[0] != signal.SIGUSR1:
                _say("stopping now, without a checkpoint")
                os._exit(128 + received[0])
            first.setdefault(received[0], now)
        self._read.close()


def _say(text: str) -> None:
    sys.stderr.write(f"\ntrain_sit.py: {text}\n")
    sys.stderr.flush()


def _signal_when_parent_dies(number: int) -> None:
    """On Linux, have this process get a signal when its launcher is gone: some launchers pass none on.

    A run that was started without one goes on when its shell ends, as under nohup.
    """
    launched = {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if launched and sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def ignore_stop_signals(worker_id: int = 0) -> None:
    """For data workers, `worker_init_fn`: a signal to the whole job must not end them before the run has stopped."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
