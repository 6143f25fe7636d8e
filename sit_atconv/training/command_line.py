"""The command line of train/train_sit.py: every field of `TrainConfig` is an option, grouped as in config.py."""

import dataclasses
import os
import sys
from collections.abc import Callable

from ..utils.option_parser import OptionParser
from ..utils.text import printable
from .config import GROUPS, TrainConfig

STOPPED = 143  # exit code of a run that was asked to stop, that of a terminated process


def build_parser() -> OptionParser:
    """The parser, with one titled group of options for each group of the configuration."""
    assert TrainConfig.__doc__ is not None
    parser = OptionParser(
        description=TrainConfig.__doc__.splitlines()[0],
        usage="%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]",
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    for group in GROUPS:
        parser.add_class_arguments(group)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> TrainConfig:
    """Parse the command line. It takes precedence over --config FILE.yaml, which takes precedence over the defaults.

    Boolean options such as --dry_run need no value, and ~ is the home folder, in YAML as well.

    Args:
        arguments: the command line; sys.argv if None.

    Raises:
        ValueError: for values that no run can use.
        SystemExit: for unknown options and values of the wrong type.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    switches = [field.name for field in dataclasses.fields(TrainConfig) if field.type is bool]
    parser = build_parser()
    options = parser.parse_options(arguments, switches)
    options.pop("config")
    return parser.build(TrainConfig, options)


def run_training(parse: Callable[[], TrainConfig], prog: str) -> int:
    """Train, report a mistake in one line, and return the exit code: 2 after a mistake, 143 after a requested stop.

    Args:
        parse: returns the configuration; mistakes in it are reported as well. PyTorch is imported after it.
        prog: name of the command, before the message.
    """
    try:
        config = parse()
        from .loop import train  # only now, since this takes seconds to import

        finished = train(config)
    except (ValueError, FloatingPointError, OSError) as error:
        # Every process finds the same mistake, so one of them reports it; but only one may have met the broken image.
        if os.environ.get("LOCAL_RANK", "0") == "0" or getattr(error, "concerns_one_process", False):
            print(f"{prog}: error: {printable(error)}", file=sys.stderr)
        return 2
    return STOPPED if finished == config.run_folder and not config.dry_run else 0
