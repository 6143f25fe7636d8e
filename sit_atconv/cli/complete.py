"""`sit-atconv complete`: a script that completes the commands and their options in a shell."""

import argparse
import importlib.util

SHELLS = ("bash", "zsh", "tcsh")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or tcsh")
    command.epilog = "bash: sit-atconv complete bash > ~/.local/share/bash-completion/completions/sit-atconv"


def copy_options(source: argparse.ArgumentParser, command: argparse.ArgumentParser) -> None:
    """Give a command the names of another parser's options."""
    for action in source._actions:
        names = [name for name in action.option_strings if not name.endswith("+") and name not in ("-h", "--help")]
        if names and action.help != argparse.SUPPRESS:
            text = (action.help or "").partition(". ")[0]
            command.add_argument(*names, help=text.replace("%%", "%").replace("%", "%%"))


def run(args: argparse.Namespace) -> None:
    """Print the script.

    Raises:
        ValueError: if the package that writes it is not installed.
    """
    if importlib.util.find_spec("shtab") is None:
        raise ValueError("completion needs the package shtab: pip install 'sit-atconv[completion]'")
    import shtab

    from .commands import build_parser

    print(shtab.complete(build_parser(with_all_options=True), args.shell))
