"""What the results of experiments share: figures over seeds as text, and a file that a killed run leaves whole."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["aligned", "markdown", "spread", "write_json"]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, the mean alone for one value, a dash for none; only finite values count.

    Example:
        >>> spread([1.0, 2.0]), spread([0.1234]), spread([16, 16]), spread([])
        ('1.50 ± 0.71', '0.123', '16', '-')
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "-"
    if len(set(known)) == 1 and known[0] == int(known[0]) and abs(known[0]) >= 10:
        return str(int(known[0]))  # a count

    mean = statistics.fmean(known)
    digits = 2 if abs(mean) >= 1 else 3
    if len(known) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(known):.{digits}f}"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its first row being the head: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *rest in table:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """The same table for a README."""
    head, *rows = table
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def write_json(path: str | os.PathLike[str], content: Mapping[str, object]) -> None:
    """Write by a rename, so that a killed run leaves the last whole file; nan and infinity become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
