"""Tables as text: what a report prints of itself."""

import re
from collections.abc import Iterable, Sequence

__all__ = ["text_table"]


def text_table(columns: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table, its head first.

    Arguments:
        columns: The head of each column and the format of its values, with bars
            between columns: a side to align to, a width, and how numbers are written.
        rows: The values of each row. A string is written as it is, and None leaves
            its place empty.

    Example:
        >>> rows = [("z", 2, 0.25), ("all", None, 1.5)]
        >>> print("\\n".join(text_table("site:<6 | units:>6 | KL:>8.3f", rows)))
        site   units      KL
        z          2   0.250
        all            1.500
    """
    parts = [column.strip().rsplit(":", 1) for column in columns.split("|")]
    heads, forms = zip(*parts, strict=True)

    lines = []
    for row in (heads, *rows):
        cells = [_cell(value, form) for value, form in zip(row, forms, strict=True)]
        lines.append("".join(cells).rstrip())
    return lines


def _cell(value: object, form: str) -> str:
    if value is None:
        value = ""
    if isinstance(value, str):  # aligned, but no number
        form = re.sub(r"(?<=\d)\D.*", "", form)
    return format(value, form)
