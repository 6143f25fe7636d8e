"""Stop signals: the first one asks a run to stop with a checkpoint, a repeated one terminates it."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# A terminal sends HUP when it is closed. Slurm warns with USR1, which also reports a dead launcher.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ECHO_SECONDS = 3.0  # a terminal, srun and the launcher may each forward the same request


class StopSignals:
    """Turn the first stop signal into a request; a repeat of the same signal terminates the process.

    Within `ECHO_SECONDS` a repeated signal counts as an echo of the first, even if a person pressed Ctrl-C twice. A
    signal of another kind does not end the run, because schedulers send several kinds one after the other, and SIGUSR1
    never does. SIGHUP stays ignored if it was ignored before, as under nohup.

    Python runs signal handlers only between instructions of the main thread, so not while that thread is blocked
    waiting for a dead process. A separate thread therefore reads the signals. On exit, this context manager restores
    the previous handlers.

    Attributes:
        requested: whether a stop was requested.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignals":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        handled = [number for number in STOP_SIGNALS if not (nohup and number == signal.SIGHUP)]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        if _has_launcher():
            _signal_when_parent_dies(signal.SIGUSR1)
        return self

    def __exit__(self, *_: object) -> None:
        if _has_launcher():
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
            if received[0] == signal.SIGHUP:
                self._leave_terminals()
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

    def _leave_terminals(self) -> None:
        """Send to nowhere what is printed on a terminal that is closed; otherwise, the next line would end the run."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def obey_parent_alone(worker_id: int = 0) -> None:
    """`worker_init_fn` of data workers: they end when their own process asks them to, or dies.

    A signal sent to the whole job must not end them before the run has stopped. SIGTERM of their own process must,
    because that is how Python ends them after an error; if it were ignored, Python would wait for them for ever.
    """
    signal.set_wakeup_fd(-1)
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere, nothing tells who sent a SIGTERM, and PyTorch ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_sigterm_of_parent, daemon=True).start()
        _signal_when_parent_dies(signal.SIGKILL)


def end_workers(workers: Sequence[BaseProcess]) -> None:
    """Ask data workers of this process to end, until all of them have.

    One request is not enough: while a SIGTERM of somebody else is pending at a worker, another one is lost.
    """
    while workers:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(0.2)
        workers = [worker for worker in workers if worker.is_alive()]


def _wait_for_sigterm_of_parent() -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)


def _say(text: str) -> None:
    sys.stderr.write(f"\n{Path(sys.argv[0]).name}: {text}\n")
    sys.stderr.flush()


def _has_launcher() -> bool:
    """Whether a launcher started this process. A run without one survives the end of its shell under nohup."""
    return bool({"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys())


def _signal_when_parent_dies(number: int) -> None:
    """On Linux, let the system send this process a signal when its parent dies, because some launchers pass none on."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
