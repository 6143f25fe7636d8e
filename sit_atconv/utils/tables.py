"""Tables of results in Markdown."""

import math
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """Format rows as a Markdown table.

    Args:
        head: the name of each column.
        rows: one sequence of cells per row, as long as `head`; each cell is converted by `str`.
        text_columns: how many of the first columns are aligned to the left; the others hold numbers, aligned to the
            right.

    Returns:
        The lines of the table, without a line break at the end.
    """
    alignment = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, alignment, *rows))


def decimals(values: Iterable[float], digits: int = 4) -> int:
    """How many decimals show the largest of these numbers with `digits` digits; none if all of them are whole."""
    values = list(values)
    largest = max(map(abs, values), default=0.0)
    if not math.isfinite(largest) or all(value == round(value) for value in values):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(largest)))


def aligned(values: Sequence[float | None], digits: int = 4, signed: bool = False) -> list[str]:
    """The numbers of a column, all with the same decimals; None is an empty cell. See `decimals`."""
    places = decimals([value for value in values if value is not None], digits)
    return ["" if value is None else f"{value:{'+' if signed else ''}.{places}f}" for value in values]


def aligned_intervals(
    values: Sequence[float], intervals: Sequence[Sequence[float] | None], digits: int = 4
) -> list[str]:
    """Like `aligned`, with the interval of each number in brackets, if it has one."""
    ends = [end for interval in intervals if interval is not None for end in interval]
    places = decimals([*values, *ends] if ends else values, digits)
    cells = []
    for value, interval in zip(values, intervals, strict=True):
        cell = f"{value:.{places}f}"
        cells.append(cell if interval is None else f"{cell} [{', '.join(f'{end:.{places}f}' for end in interval)}]")
    return cells
