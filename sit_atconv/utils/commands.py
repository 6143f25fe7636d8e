"""What the commands have in common: output files are checked first, mistakes end with one line, text is printable.

This file imports nothing that takes long, so that a command can use it before PyTorch and diffusers are imported.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .files import check_new_file, write_report
from .home import expand_home
from .text import joined_lines, printable

INTERRUPTED = 130  # exit code after Ctrl-C, as shells report it
NOBODY_READS = 141  # exit code where the output is a pipe whose reader has left, as shells report it


@contextmanager
def reporting_mistakes(prog: str, interrupted: str = "nothing was written") -> Iterator[None]:
    """End a command with one line on stderr and an exit code, instead of a traceback.

    A ValueError or OSError ends it with code 2, and Ctrl-C with code 130. A reader of the output that leaves early, as
    `head` does, ends it silently with code 141. Other exceptions are errors of the program, and keep their traceback.

    Args:
        prog: name of the command, before the message.
        interrupted: what is said after Ctrl-C.
    """
    try:
        yield
        sys.stdout.flush()  # here, so that a reader that has left is noticed
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise, Python reports it once more as it ends
        sys.exit(NOBODY_READS)
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {joined_lines(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def is_spokesman() -> bool:
    """Whether this process reports a mistake that all processes of a launch find: the first one of each machine."""
    try:
        return int(os.environ.get("LOCAL_RANK", "0")) == 0
    except ValueError:  # which is a mistake itself
        return True


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """The values that a command line gives to an option, as --option VALUE or --option=VALUE, with ~ expanded.

    The command line is not parsed yet, because building the parser imports slow modules.
    """
    values = []
    for argument, following in zip(arguments, [*arguments[1:], "null"], strict=False):
        name, joined, value = argument.partition("=")
        if name == f"--{option}":
            values.append(value if joined else following)
    return [expand_home(value) for value in values if value != "null"]


def check_outputs_at_once(arguments: Sequence[str], *options: str) -> None:
    """Check the output files named on a command line, before it is parsed and anything slow is imported.

    Args:
        arguments: the command line.
        options: options that name new files, such as "output".

    Raises:
        ValueError: if a file exists or cannot be written, or two options name the same one.
    """
    named: dict[Path, str] = {}
    for option in options:
        for value in values_of(option, arguments):
            check_new_file(option, value)
            if (other := named.setdefault(Path(value).absolute(), option)) != option:
                raise ValueError(f"{option}={value!r} is also the file of --{other}; name two files")


def named_folders(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Split "NAME=PIPELINE", as commands take several pipelines, into (name, folder); raise ValueError without both."""
    named = [(name, folder) for name, _, folder in (text.partition("=") for text in texts)]
    for text, (name, folder) in zip(texts, named, strict=True):
        if not name or not folder:
            raise ValueError(f"{text!r} names no model; write NAME=PIPELINE, such as flow={folder or text}")
    return named


def save_report(file: str | None, report: dict) -> None:
    """Write the report of a command to a new file; if that fails, print it, since it may have taken hours.

    Args:
        file: the file; None writes nothing.
        report: the report.

    Raises:
        OSError: if the file exists by now, or cannot be written.
    """
    if file is None:
        return
    try:
        write_report(file, report)
    except OSError:
        print(printable(json.dumps(report, ensure_ascii=False)))
        raise
