"""Named facts, as the commands print them."""

from ..utils.text import one_line

NAME_WIDTH = 16  # characters; longer names push their facts


def print_facts(facts: dict[str, str]) -> None:
    """Print named facts, one per line."""
    for name, value in facts.items():
        print(f"{one_line(name):{NAME_WIDTH - 1}} {one_line(value)}")
