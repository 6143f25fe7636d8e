"""The command line of a training: every field of its configuration is an option, grouped as in config.py."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..utils.commands import is_spokesman
from ..utils.option_parser import OptionParser
from ..utils.text import printable
from .config import GROUPS, CommonConfig, TrainConfig
from .continuation import continues_run
from .references import check_references

Config = TypeVar("Config", bound=CommonConfig)

STOPPED = 143  # exit code of a run that was asked to stop, that of a terminated process


def build_parser(kind: type[CommonConfig] = TrainConfig, groups: Sequence[type] = GROUPS) -> OptionParser:
    """The parser, with one titled group of options for each group of the configuration."""
    assert kind.__doc__ is not None
    parser = OptionParser(
        description=kind.__doc__.splitlines()[0],
        usage="%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]",
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    for group in groups:
        parser.add_class_arguments(group)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> TrainConfig:
    """Parse the command line of train/train_sit.py; see `parse_config`."""
    return parse_config(TrainConfig, GROUPS, arguments)


def parse_config(kind: type[Config], groups: Sequence[type], arguments: list[str] | None = None) -> Config:
    """Parse a command line. It takes precedence over --config FILE.yaml, which takes precedence over the defaults.

    Boolean options such as --dry_run need no value, and ~ is the home folder, in YAML as well.

    Args:
        kind: the class of the configuration.
        groups: the classes of its groups of options.
        arguments: the command line; sys.argv if None.

    Raises:
        ValueError: for values that no run can use, or an output folder that holds another run.
        SystemExit: for unknown options and values of the wrong type.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    switches = [field.name for field in dataclasses.fields(kind) if field.type is bool]
    parser = build_parser(kind, groups)
    options = parser.parse_options(arguments, switches)
    options.pop("config")
    config = build_config(parser, kind, options)
    if not config.dry_run or config.resume is not None:
        continues_run(config)
    return config


def build_config(parser: OptionParser, kind: type[Config], options: dict[str, Any]) -> Config:
    """Build a configuration from options that were parsed, and check what it refers to.

    Raises:
        ValueError: for values that no run can use.
    """
    config = parser.build(kind, options)
    with parser.locating():
        check_references(config)
    return config


def run_training(parse: Callable[[], CommonConfig], prog: str) -> int:
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
        if is_spokesman() or getattr(error, "concerns_one_process", False):
            print(f"{prog}: error: {printable(error)}", file=sys.stderr)
        return 2
    return STOPPED if finished == config.run_folder and not config.dry_run else 0
