"""The parser of commands whose options are dataclasses and functions of the package."""

import functools
import itertools
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from .bounded_text import check_yaml
from .home import expand_home
from .text import printable


class OptionParser(ArgumentParser):
    """A jsonargparse parser that expands ~ and accepts switches without a value; its messages are safe to print.

    Configuration files that would take the machine's memory or stack are refused.

    Args:
        **options: as for `jsonargparse.ArgumentParser`; options cannot be abbreviated.
    """

    def __init__(self, **options: Any):
        bound_yaml()
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the usage and the message, and exit with code 2."""
        super().error(printable(message), ex)

    def parse_args(self, *arguments, **options):
        """Parse the command line, as jsonargparse does."""
        try:
            return super().parse_args(*arguments, **options)
        except RecursionError:  # in jsonargparse's own reader of JSON, which YAML includes
            self.error("the options, or their configuration file, nest lists and dictionaries too deeply; flatten them")

    def parse_options(self, arguments: Sequence[str], switches: Collection[str] = ()) -> dict[str, Any]:
        """Parse a command line, and expand a leading ~ in all values.

        The options of the command line take precedence over those of --config FILE.yaml, wherever it stands.

        Args:
            arguments: the command line.
            switches: boolean options that need no value: --name is --name true.
        """
        spelled_out: list[str] = []
        flags = {f"--{name}" for name in switches}
        for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
            spelled_out += [argument, "true"] if argument in flags and following.startswith("--") else [argument]
        return expand_home(self.parse_args(files_first(spelled_out)).as_dict())


def files_first(arguments: Sequence[str]) -> list[str]:
    """A command line with its --config options before the others, which thus take precedence: the last one counts."""
    files: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            files += [argument, *itertools.islice(remaining, 1)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return files + others


@functools.cache
def bound_yaml() -> None:
    """Let jsonargparse check YAML, in configuration files and options, before it is parsed."""
    parse = get_loader("yaml")

    def load(text: str):
        check_yaml(text, "the configuration")
        return parse(text)

    set_loader("yaml", load, exceptions=(ValueError, yaml.YAMLError))
