"""Scripts that are started as commands of their own."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ..utils.home import expand_home


def python_command(launch: str | None) -> list[str]:
    """The words before a script's name that start it.

    Args:
        launch: a command such as "accelerate launch --num_processes 8", which is run by this Python. If None, the
            script is started as one process.
    """
    if launch is None:
        return [sys.executable]
    words = expand_home(shlex.split(launch))
    if words[:2] == ["accelerate", "launch"]:
        return [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    return words


def option_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as arguments of a command: --name value; values other than text are written as JSON."""
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return arguments


def run_to_end(command: list[str]) -> int:
    """Run a command and return its exit status.

    A signal does not cut the command short: training gets the time to write its checkpoint, and then this process stops
    as well.

    Raises:
        KeyboardInterrupt: after SIGINT, SIGTERM or SIGHUP (unless that is ignored, as under nohup), when the command
            has ended.
    """
    process = subprocess.Popen(command)
    stopped = False

    def stop(number, frame):
        nonlocal stopped
        stopped = True
        if number != signal.SIGINT:  # Ctrl-C reaches the command by itself
            process.terminate()

    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    stopping = (signal.SIGINT, signal.SIGTERM, *(() if nohup else (signal.SIGHUP,)))
    previous = {number: signal.signal(number, stop) for number in stopping}
    try:
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt
    return status
