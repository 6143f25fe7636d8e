"""The table of the commands, and their parser."""

import argparse
import sys
from types import ModuleType

from .. import __version__
from ..utils.commands import reporting_mistakes
from ..utils.home import expand_home
from . import complete, convert, demo, evaluate, info, morph, presets, push, sample, train
from .parser import CommandParser

# Each command, its file in this folder, and its line in --help. A new command is a new file and a line here. A file
# holds `add_options` and `run`; or `build_parser` and `main`, if its options are those of a dataclass.
COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "train": (train, "train a model on a folder of images"),
    "sample": (sample, "draw images from a pipeline folder"),
    "morph": (morph, "the way from one image to another, as a strip or an animation"),
    "demo": (demo, "a page in the browser that draws, with one pipeline or two side by side"),
    "evaluate": (evaluate, "score samples against real images: FID, KID, precision, recall …"),
    "info": (info, "describe a pipeline folder, or how a picture was sampled"),
    "presets": (presets, "list the sizes of models: parameters, GMACs, memory"),
    "convert": (convert, "convert a checkpoint of SiT, ATConv, REPA, DiT or AttNet to a folder, or back"),
    "push": (push, "upload a pipeline folder to the Hugging Face Hub"),
    "complete": (complete, "print what completes these commands in a shell"),
}


def build_parser(with_all_options: bool = False) -> CommandParser:
    """Return the parser of all commands.

    Args:
        with_all_options: also add the options of commands that parse their own, for shells to complete.
    """
    parser = CommandParser(prog="sit-atconv", description="SiT with ATConv: everyday commands.")
    parser.add_argument("--version", action="version", version=f"sit-atconv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if hasattr(module, "add_options"):
            module.add_options(command)
            command.set_defaults(run=module.run, parser=command)
        elif with_all_options:
            complete.copy_options(module.build_parser(), command)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run `sit-atconv`; a mistake ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS and hasattr(COMMANDS[arguments[0]][0], "main"):
        COMMANDS[arguments[0]][0].main(arguments[1:])
        return
    args = argparse.Namespace(**expand_home(vars(build_parser().parse_args(arguments))))
    with reporting_mistakes("sit-atconv"):
        args.run(args)
