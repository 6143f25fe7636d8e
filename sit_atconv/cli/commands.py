"""The table of the commands, and their parser."""

import argparse
from types import ModuleType

from ..utils.commands import reporting_mistakes
from ..utils.home import expand_home
from . import convert, demo, info, push, sample

# Each command, its file in this folder, and its line in --help. A new command is a new file and a line here.
COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "sample": (sample, "draw images from a pipeline folder, one class per row"),
    "info": (info, "describe what a pipeline folder holds"),
    "convert": (convert, "convert a checkpoint of SiT, ATConv, REPA, DiT or AttNet to a folder, or back"),
    "demo": (demo, "a page in the browser that draws, with one pipeline or two side by side"),
    "push": (push, "upload a pipeline folder to the Hugging Face Hub"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    # Not jsonargparse, which parses the training's options: its import takes three times as long as this module's, and
    # it knows no list of plain words, such as `--classes 3 cat`.
    parser = argparse.ArgumentParser(prog="sit-atconv", description="SiT with ATConv: everyday commands.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30)
        )
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run `sit-atconv`; a mistake ends with one line and exit code 2."""
    args = argparse.Namespace(**expand_home(vars(build_parser().parse_args(arguments))))
    with reporting_mistakes("sit-atconv"):
        args.run(args)
