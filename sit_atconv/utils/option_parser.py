"""The parser of commands whose options are dataclasses and functions of the package."""

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from .bounded_text import check_yaml, key_lines, read_configuration
from .commands import is_spokesman, values_of
from .home import expand_home
from .option_help import HelpAction, describe_type, format_options, names_of, option_type, options_of
from .outlines import function_outline
from .suggestions import did_you_mean
from .text import joined_lines, printable

T = TypeVar("T")


class OptionParser(ArgumentParser):
    """A jsonargparse parser that expands ~ and accepts switches without a value; its messages are safe to print.

    A mistake ends with one line, which names the option, the value and what it may be, and for a configuration file
    also the file and the line. Configuration files that would take the machine's memory or stack are refused.

    Args:
        **options: as for `jsonargparse.ArgumentParser`; options cannot be abbreviated.
    """

    def __init__(self, **options: Any):
        bound_yaml()
        self.arguments: list[str] = []
        self.files: list[str] = []  # of --config
        self.outlines: list[Callable[..., None]] = []  # of the functions whose parameters are options
        super().__init__(allow_abbrev=False, add_help=False, **options)
        self.add_argument("-h", "--help", action=HelpAction)

    def add_function_options(self, module: str, name: str, skip: Collection[str] = ()) -> None:
        """Add the parameters of a function as options, without importing its module; see `function_outline`.

        `parse_options` makes the checks with which the function begins.
        """
        self.outlines.append(function_outline(module, name, skip))
        self.add_function_arguments(self.outlines[-1])

    def format_help(self, formatter: Any = None) -> str:
        """The text of --help: a line for each option."""
        return printable(format_options(self))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake in one line, on the first process of a machine, and exit with code 2."""
        if is_spokesman():
            print(f"{self.prog}: error: {joined_lines(self.explain(message))}", file=sys.stderr)
        self.exit(2)

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

        Raises:
            ValueError: of the checks with which the functions of `add_function_options` begin.
        """
        self.arguments = list(arguments)
        self.files = values_of("config", arguments)
        for file in self.files:
            try:
                check_yaml(read_configuration(file), file)
            except (OSError, ValueError) as error:
                self.error(f"config={file!r}: {error.strerror}" if isinstance(error, OSError) else str(error))
        spelled_out: list[str] = []
        flags = {f"--{name}" for name in switches}
        for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
            spelled_out += [argument, "true"] if argument in flags and following.startswith("--") else [argument]
        options = expand_home(self.parse_args(files_first(spelled_out)).as_dict())
        for outline in self.outlines:
            with self.locating():
                outline(**{name: options[name] for name in inspect.signature(outline).parameters})
        return options

    def is_given(self, name: str) -> bool:
        """Whether the command line that was parsed, or a configuration file of it, sets an option."""
        given = {argument.partition("=")[0].lstrip("-") for argument in self.arguments if argument.startswith("--")}
        return name in given or any(name in key_lines(read_configuration(file)) for file in self.files)

    def explain(self, message: str) -> str:
        """A message of argparse or jsonargparse in the words of this package, with the place in a configuration."""
        if unknown := re.match(r"unrecognized arguments: (-*)([^\s=]+)", message):
            if not unknown[1]:
                return f"{unknown[2]!r} belongs to no option; --help lists them"
            return f"there is no option {unknown[1]}{unknown[2]}{self.nearest(unknown[2], '--')}"
        if lacking := re.match(r"argument (?:-\w/)?(--\w+).*: expected", message):
            return f"{lacking[1]} needs a value"
        if choice := re.match(r"argument --(\w+): invalid choice: '([^']*)' \(choose from (.*)\)", message):
            known = [name.strip(" '") for name in choice[3].split(",")]
            return f"{choice[1]}={choice[2]!r} must be one of {', '.join(known)}{did_you_mean(choice[2], known)}"
        if unknown := re.match(r"Option '([^']+)' is not accepted", message):
            return self.located(unknown[1], f"there is no option {unknown[1]}{self.nearest(unknown[1])}")
        if wrong := re.match(r'Parser key "([^"]+)":\s*(.*)', message, flags=re.DOTALL):
            return self.located(wrong[1], self.explain_value(wrong[1], wrong[2]))
        return message

    def explain_value(self, name: str, reason: str) -> str:
        """What is wrong with the value of an option, by its type."""
        value = re.search(r"Got value: (.*)|Given value: (.*)", reason)
        action = next((each for each in options_of(self) if name in names_of(each)), None)
        if value is None or action is None:
            return f"{name}: {reason}"
        given = (value[1] or value[2] or "").strip()
        wanted = describe_type(option_type(action))
        return f"{name}={given!r} must be {wanted}{did_you_mean(given, wanted.replace('one of ', '').split(', '))}"

    def nearest(self, name: str, dashes: str = "") -> str:
        """The option that is nearest to a mistyped one, for a message; where to look if none is."""
        known = [f"{dashes}{each}" for action in options_of(self) for each in names_of(action)]
        return did_you_mean(f"{dashes}{name}", known) or "; --help lists them"

    def located(self, name: str, message: str) -> str:
        """A message about an option, headed by the place in the configuration file that set it, if one did."""
        given = {argument.partition("=")[0].lstrip("-") for argument in self.arguments if argument.startswith("--")}
        for file in reversed(self.files if name not in given else []):
            lines = key_lines(read_configuration(file))
            parts = name.split(".")
            for key in (".".join(parts[:count]) for count in range(len(parts), 0, -1)):
                if key in lines:
                    return f"{file}:{lines[key]}: {message}"
        return message

    def build(self, options_class: Callable[..., T], options: dict[str, Any]) -> T:
        """Build a dataclass of options that were parsed.

        Raises:
            ValueError: of the class; if it begins with NAME=…, headed by the place in a configuration file that set it.
        """
        with self.locating():
            return options_class(**options)

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Head a ValueError that begins with NAME=… by the place in a configuration file that set the option."""
        try:
            yield
        except ValueError as error:
            name = re.match(r"([\w.]+)=", str(error))
            raise (ValueError(self.located(name[1], str(error))) if name else error) from error


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
