"""The command line of train/train_sit.py: every field of `TrainConfig` is an option, grouped as in config.py."""

import dataclasses
import sys

from ..utils.option_parser import OptionParser
from .config import GROUPS, TrainConfig


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
    options = build_parser().parse_options(arguments, switches)
    options.pop("config")
    return TrainConfig(**options)
