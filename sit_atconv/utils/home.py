"""Paths as users write them in options and configuration files."""

import os
import re
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
HOME = re.compile(r"(?P<kind>(?:[a-z]+:)?)(?P<path>~.*)", flags=re.DOTALL)  # ~/photos, latents:~/photos


def expand_home(value: Value) -> Value:
    """Replace a leading ~ or ~user by the home folder, as a shell does, in an option or in a whole set of options.

    A shell leaves the ~ of `--output=~/samples` and of values in YAML files as it is. Every command and every
    dataclass of options passes its values through this function, so that no folder called "~" is ever made. Write
    ./~ for a file that really has this name.

    Args:
        value: text, also with a kind before the path, such as "torchscript:~/net.pt"; a Path; or a list, tuple or
            dictionary of such values, at any depth. Other values are returned as they are.
    """
    expanded: object = value
    if isinstance(value, str):
        if match := HOME.fullmatch(value):
            expanded = match["kind"] + os.path.expanduser(match["path"])
    elif isinstance(value, Path):
        expanded = Path(os.path.expanduser(value))
    elif isinstance(value, dict):
        expanded = {name: expand_home(inner) for name, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        expanded = type(value)(map(expand_home, value))
    return expanded  # type: ignore[return-value]  # of the type that came in
