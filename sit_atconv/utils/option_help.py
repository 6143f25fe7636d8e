"""--help of the parsers: a line for each option, and all that is to be said of one that is named."""

import argparse
import re
import shutil
import textwrap
import types
import typing
from typing import Any, Literal, get_args, get_origin

MAX_WIDTH = 120
NAME_WIDTH = 36  # of an option and its value; the text stands after it


class HelpAction(argparse._HelpAction):  # jsonargparse knows help by this class
    """--help lists the options, a line each; --help NAME says everything about one of them."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any):
        super().__init__(option_strings, dest, help="list the options; --help NAME says more about one of them")
        self.nargs, self.metavar = "?", "NAME"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print the help and exit."""
        named = [each for each in options_of(parser) if values and str(values).lstrip("-") in names_of(each)]
        print("\n".join(explain_option(each) for each in named) if named else parser.format_help(), end="")
        parser.exit()


def width() -> int:
    """The width of the terminal, within the lines that this project writes."""
    return min(MAX_WIDTH, shutil.get_terminal_size().columns)


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options and positional arguments that --help shows."""
    return [each for each in parser._actions if each.help != argparse.SUPPRESS]


def names_of(action: argparse.Action) -> set[str]:
    """The names of an option without dashes; that of a positional argument."""
    return {name.lstrip("-") for name in action.option_strings} or {action.dest}


def option_type(action: argparse.Action) -> Any:
    """The annotation of an option."""
    return getattr(action, "_typehint", None) or action.type or str


def describe_type(hint: Any) -> str:
    """A type in the words of a message: "a whole number", "one of linear, gvp, vp"."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(hint) if value is not False)
    if get_origin(hint) in (typing.Union, types.UnionType):
        parts = [describe_type(each) for each in get_args(hint)]
        return " or ".join(dict.fromkeys(parts))
    if get_origin(hint) is list:
        return f"a list such as [{', '.join(_examples(get_args(hint)[0]))}]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, "names and values" if get_origin(hint) is dict or hint is dict else str(hint))


def _examples(hint: Any) -> tuple[str, ...]:
    return {int: ("1", "2"), float: ("0.1", "0.2"), str: ("a", "b")}.get(hint, ("…",))


def value_name(action: argparse.Action) -> str:
    """What stands for the value of an option in --help: N, NUMBER, TEXT …, nothing for a switch."""
    if isinstance(action.metavar, str) and re.fullmatch(r"[\w/.]+", action.metavar):
        return action.metavar
    if action.nargs == 0 or (isinstance(action.metavar, str) and action.metavar.startswith("\b")):  # --print_config
        return ""
    hint = option_type(action)
    if get_origin(hint) is dict:
        return "VALUE"
    hints = [each for each in (get_args(hint) or (hint,)) if each is not type(None)]
    if get_origin(hint) is Literal or get_origin(hints[0]) is Literal:
        return "NAME"
    kinds = {int: "N", float: "NUMBER", str: "TEXT", bool: "BOOL", dict: "VALUE", Any: "VALUE"}
    return kinds.get(hints[0], kinds.get(get_origin(hints[0]) or str, "LIST"))


def invocation(action: argparse.Action) -> str:
    """An option with what stands for its value; a positional argument by its name in capitals."""
    if not action.option_strings:
        return action.dest.upper()
    if isinstance(action, HelpAction):
        return ", ".join(action.option_strings)
    return f"{long_name(action)} {value_name(action)}".rstrip()


def long_name(action: argparse.Action) -> str:
    """The name of an option with two dashes; jsonargparse adds NAME+, which appends to a list."""
    return next(name for name in action.option_strings if name.startswith("--"))


def default_text(action: argparse.Action) -> str:
    """The default in brackets; nothing for defaults that say nothing."""
    hint = option_type(action)
    if action.default in (None, argparse.SUPPRESS, "", [], {}) or (hint is bool and action.default is False):
        return ""
    return f" [{action.default}]"


def summary_line(action: argparse.Action) -> str:
    """One line about an option: the first sentence of its description, shortened to the width, and its default."""
    default = default_text(action)
    text = (action.help or "").replace("%%", "%").partition(". ")[0].rstrip(".")
    room = width() - NAME_WIDTH - len(default)
    if len(text) > room:
        text = textwrap.shorten(text, room, placeholder=" …", break_on_hyphens=False)
    return f"  {invocation(action):<{NAME_WIDTH - 3}} {text}{default}"


def explain_option(action: argparse.Action) -> str:
    """All that is to be said about an option."""
    text = f"{action.help or ''} ({describe_type(option_type(action))})".replace("%%", "%")
    default = default_text(action)
    lines = textwrap.wrap(text + (f" Default: {default.strip(' []')}." if default else ""), width() - 4)
    return "\n    ".join([invocation(action), *lines]) + "\n"


def format_options(parser: argparse.ArgumentParser) -> str:
    """The whole --help of a parser."""
    usage = (parser.usage or "%(prog)s [--OPTION VALUE ...]") % {"prog": parser.prog}
    lines = [f"usage: {usage}", ""]
    if parser.description:
        lines += [*textwrap.wrap(parser.description, width()), ""]
    shown = set(map(id, options_of(parser)))
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if id(each) in shown]
        if actions:
            title = "Options" if group.title in ("options", "optional arguments") else group.title or "Options"
            lines += [f"{title[0].upper()}{title[1:]}:", *map(summary_line, actions), ""]
    return "\n".join(lines).rstrip() + "\n"
