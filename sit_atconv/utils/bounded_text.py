"""YAML and JSON from elsewhere: what a file may cost is bounded before it is read.

A few lines of YAML can stand for gigabytes, because an alias repeats what it names ("billion laughs"); and deeply
nested brackets exhaust the stack of whatever walks through them. Every reader of such files in this package is one of
these functions, so that a crafted file ends with a `ValueError` that names it.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from .files import open_regular

MAX_FILE_BYTES = 2**26  # 64 MiB; the largest files of this kind list the weights of a model, or latents
MAX_YAML_CHARACTERS = 2**20  # of a configuration
MAX_EXPANDED_CHARACTERS = 2**22  # of a configuration, with each alias counted as what it repeats
MAX_DEPTH = 64  # of lists and dictionaries
MAX_NUMBER_CHARACTERS = 1000  # YAML's 1:59:59 is a number to the base 60, which takes minutes if it is long
LONG_NUMBER = re.compile(rf"[-+]?[0-9][0-9a-fA-FxXoO_:.]{{{MAX_NUMBER_CHARACTERS},}}")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_bounded(file: str | Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Read a text file, UTF-8, of a size that text has; it is not waited for a pipe.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, too large, or not UTF-8.
    """
    with open_regular(file) as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{file} has more than {max_bytes} bytes, too many for a text of its kind")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged, or no UTF-8 text: {error}") from error


def load_json(text: str, source: str | Path) -> Any:
    """Parse JSON that nests no deeper than `MAX_DEPTH`.

    Args:
        text: the JSON.
        source: where it comes from, for the message.

    Raises:
        ValueError: if it is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is damaged, or no JSON: {error}") from error
    except RecursionError:
        raise _too_deep(source) from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):  # one level of nesting at a time
        level = [inner for each in level for inner in _items(each) if isinstance(inner, (dict, list))]
    if level:
        raise _too_deep(source)
    return value


def _items(container: dict | list) -> list:
    return list(container.values()) if isinstance(container, dict) else container


def _too_deep(source: str | Path) -> ValueError:
    return ValueError(f"{source} nests lists and dictionaries more than {MAX_DEPTH} deep; flatten it")


def read_json(file: str | Path) -> Any:
    """Return the content of a JSON file; see `read_bounded` and `load_json` for what is refused."""
    return load_json(read_bounded(file), file)


def read_json_object(file: str | Path) -> dict:
    """Like `read_json`, for a file that must hold one dictionary.

    Raises:
        ValueError: also if it holds something else.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, where names and values {{…}} are expected")
    return content


def load_yaml(text: str, source: str | Path) -> Any:
    """Parse YAML of plain values, whose aliases do not expand it beyond `MAX_EXPANDED_CHARACTERS`.

    Args:
        text: the YAML.
        source: where it comes from, for the message.

    Raises:
        ValueError: if it is not YAML, or one that is too large, nested too deeply, or contains itself.
    """
    check_yaml(text, source)
    try:
        return yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: such as the 30th of February
        raise ValueError(f"{source} is not YAML of plain values: {_in_one_line(error)}") from error


def read_yaml(file: str | Path) -> Any:
    """Return the content of a YAML file; see `read_bounded` and `load_yaml` for what is refused."""
    return load_yaml(read_configuration(file), file)


def read_configuration(file: str | Path) -> str:
    """Return the text of a YAML file of the size that configurations have; see `read_bounded` for what is refused."""
    return read_bounded(file, 4 * MAX_YAML_CHARACTERS)


def key_lines(text: str) -> dict[str, int]:
    """The lines, counted from 1, on which the keys of a YAML text stand. Keys of a dictionary within are KEY.INNER.

    The text has passed `check_yaml`. It is empty if the text is no dictionary.
    """
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str, depth: int) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) and depth < MAX_DEPTH else ():
            if isinstance(key, yaml.ScalarNode):
                lines[f"{prefix}{key.value}"] = key.start_mark.line + 1
                walk(value, f"{prefix}{key.value}.", depth + 1)

    walk(yaml.compose(text, Loader=LOADER), "", 0)
    return lines


def check_yaml(text: str, source: str | Path) -> None:
    """Raise ValueError unless YAML is of moderate size and depth, also with each alias as what it repeats.

    It is looked at piece by piece; no value is built.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"{source} has more than {MAX_YAML_CHARACTERS} characters, too many for a configuration")
    anchors: dict[str, tuple[int, int]] = {}  # the characters and the depth of what they name
    parents: list[tuple[str | None, list[tuple[int, int]]]] = [(None, [])]  # open containers: their anchors and items
    try:
        for event in yaml.parse(text, Loader=LOADER):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.CollectionStartEvent):
                parents.append((anchor, []))
                if len(parents) > MAX_DEPTH + 1:
                    raise _too_deep(source)
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, items = parents.pop()
                size = 1 + sum(size for size, _ in items), 1 + max((depth for _, depth in items), default=0)
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == opened for opened, _ in parents):
                    raise ValueError(f"{source}: what is called &{anchor} contains itself; write it out")
                size, anchor = anchors.get(event.anchor, (0, 0)), None
            elif isinstance(event, yaml.ScalarEvent):
                is_text = event.style and event.tag is None  # a plain scalar has no style
                if not is_text and LONG_NUMBER.fullmatch(event.value):
                    raise ValueError(
                        f"{source}:{event.start_mark.line + 1}: a number has {len(event.value)} characters, more than "
                        f"{MAX_NUMBER_CHARACTERS}; put it in quotes if it is text"
                    )
                size = 1 + len(event.value), 0
            else:
                continue
            _check_expanded(size, source)
            parents[-1][1].append(size)
            if anchor is not None:
                anchors[anchor] = size
    except yaml.YAMLError as error:
        if "nesting depth" in str(error):  # PyYAML 6.0.4 has a limit of its own
            raise _too_deep(source) from None
        raise _not_yaml(source, error) from error


def _not_yaml(source: str | Path, error: yaml.YAMLError) -> ValueError:
    """The error for what is no YAML, with its line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return ValueError(f"{source} is not YAML: {_in_one_line(error)}")
    return ValueError(f"{source}:{mark.line + 1}: this is not YAML: {problem}, column {mark.column + 1}")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_expanded(size: tuple[int, int], source: str | Path) -> None:
    if size[0] > MAX_EXPANDED_CHARACTERS:
        raise ValueError(
            f"{source}: its aliases (*NAME) stand for more than {MAX_EXPANDED_CHARACTERS} characters; write out what "
            "is needed instead of repeating it"
        )
    if size[1] > MAX_DEPTH:
        raise _too_deep(source)
