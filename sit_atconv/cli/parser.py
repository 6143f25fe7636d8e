"""The parser of the commands: argparse, with messages in one line that name what was meant."""

# Not jsonargparse, which parses the options of training and evaluation: its import takes three times as long as that of
# this room, and it knows no list of plain words, such as `--classes 3 cat`.
import argparse
import re
import sys
from typing import NoReturn

from ..utils.suggestions import did_you_mean
from ..utils.text import joined_lines


class CommandParser(argparse.ArgumentParser):
    """A parser whose options cannot be abbreviated; a mistake ends with one line and exit code 2."""

    def __init__(self, **options):
        options.setdefault("formatter_class", lambda prog: argparse.HelpFormatter(prog, max_help_position=32))
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args=None, namespace=None):
        """Parse a command line; options that do not exist are reported by the command that they were given to."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(parsed, "parser", self).refuse(unknown[0])
        return parsed

    def refuse(self, word: str) -> NoReturn:
        """Report a word of the command line that belongs to nothing."""
        name = word.partition("=")[0]
        if not name.startswith("-"):
            self.error(f"{name!r} belongs to no option; --help lists them")
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        self.error(f"there is no option {name}{did_you_mean(name, known) or '; --help lists them'}")

    def error(self, message: str) -> NoReturn:
        """Print the mistake in one line, and exit with code 2."""
        if choice := re.match(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message):
            what, word, known = choice[1], choice[2], [name.strip(" '") for name in choice[3].split(",")]
            near = did_you_mean(word, known) or f"; choose from {', '.join(known)}"
            message = f"{'there is no command' if what == 'COMMAND' else what} {word}{near}"
        elif value := re.match(r"argument (?:-\w/)?(\S+): invalid (\w+) value: (.*)", message):
            kinds = {"int": "a whole number", "float": "a number"}
            message = f"{value[1]} {value[3]} must be {kinds.get(value[2], value[2])}"
        print(f"{self.prog}: error: {joined_lines(message)}", file=sys.stderr)
        self.exit(2)
