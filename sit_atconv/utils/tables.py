"""Tables of results in Markdown."""

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
