"""Stop signals: the first one asks a run to stop with a checkpoint, a repeated one ends it at once."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm warns with USR1; it also reports a dead launcher
ECHO_SECONDS = 3.0  # a terminal, srun and the launcher may each pass on one and the same request


class StopSignals:
    """Turn the first stop signal into a request; the same signal once more ends the process at once.

    Within `ECHO_SECONDS` a repeated signal counts as an echo of the first, even if a person pressed Ctrl-C twice. A
    signal of another kind does not end the run, because schedulers send several kinds one after the other, and SIGUSR1
    never does.

    Python runs signal handlers between two lines of the main thread, which never happens while that thread waits for a
    process that is gone. Therefore a separate thread reads the signals. On exit, this context manager restores the
    previous handlers.

    Attributes:
        requested: whether a stop was requested.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignals":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        _signal_when_parent_dies(signal.SIGUSR1)
        return self

    def __exit__(self, *_: object) -> None:
        _signal_when_parent_dies(0)
        signal.set_wakeup_fd(self._fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._write.close()

    def _watch(self) -> None:
        first: dict[int, float] = {}  # time at which each signal first came
        while received := self._read.recv(1):
            if received[0] not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            if not self.requested:
                self.requested = True
                name = signal.Signals(received[0]).name
                _say(
                    f"{name}: stopping after this step with a checkpoint; send it once more, after {ECHO_SECONDS:g} "
                    "seconds, to stop without one"
                )
            elif now - first.get(received[0], now) > ECHO_SECONDS and received[0] != signal.SIGUSR1:
                _say("stopping now, without a checkpoint")
                os._exit(128 + received[0])
            first.setdefault(received[0], now)
        self._read.close()


def ignore_stop_signals(worker_id: int = 0) -> None:
    """`worker_init_fn` of data workers: a signal sent to the whole job must not end them before the run has stopped."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    sys.stderr.write(f"\ntrain_sit.py: {text}\n")
    sys.stderr.flush()


def _signal_when_parent_dies(number: int) -> None:
    """On Linux, let the system send this process a signal when its launcher dies, because some launchers pass none on.

    A run without a launcher is left alone, so that it survives the end of its shell under nohup.
    """
    launched = {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if launched and sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
