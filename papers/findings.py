"""The figures of a study beside the published ones: over seeds, as a table, as JSON."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from papers.table import aligned, markdown, spread, write_json

__all__ = ["Findings", "Row"]


@dataclass(frozen=True)
class Row:
    """One case with one seed.

    Attributes:
        case: Name of the case.
        seed: Seed of its weights, order and noise.
        figures: By column; nan where a figure is not defined.
        seconds: What training and measuring took.
        error: What stopped the case, if anything did; it has no figures then.
    """

    case: str
    seed: int
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str = ""


@dataclass
class Findings:
    """The rows of a study.

    Attributes:
        study: Name of the study.
        setting: What all cases share, as plain values.
        rows: One for each case and seed.
        published: By case and column, in the paper's own setting.
        remark: Where the published figures are from and how far they can be compared.
        summary: Lines computed across rows.
        about: Command, machine and library versions.
    """

    study: str
    setting: Mapping[str, object]
    rows: list[Row] = field(default_factory=list)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    remark: str = ""
    summary: list[str] = field(default_factory=list)
    about: Mapping[str, object] = field(default_factory=dict)

    def has(self, case: str, seed: int) -> bool:
        """Whether there is a row of this case with this seed."""
        return any((row.case, row.seed) == (case, seed) for row in self.rows)

    def column(self, name: str) -> dict[str, list[float]]:
        """A column's figures by case, one for each seed; cases without it are left out."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if name in row.figures:
                found.setdefault(row.case, []).append(row.figures[name])
        return found

    def __str__(self) -> str:
        return "\n".join([self.title(), *aligned(self.table()), *self._notes()])

    def title(self) -> str:
        """The study and its setting in one line."""
        told = {name: value for name, value in self.setting.items() if value not in (None, [], ())}
        shared = ", ".join(f"{name} {_short(value)}" for name, value in told.items())
        return f"{self.study}: {shared}; mean ± sd over seeds"

    def markdown(self) -> str:
        """Title, table, summary and remark for a README."""
        return "\n\n".join([f"*{self.title()}.*", "\n".join(markdown(self.table())), *self._notes()])

    def _notes(self) -> list[str]:
        return [*self.summary, self.remark] if self.remark else self.summary

    def table(self) -> list[list[str]]:
        """Head and lines; a case's published figures stand in the line below it, those of cases not run at the end."""
        cases = dict.fromkeys([*(row.case for row in self.rows), *self.published])
        every = [*(row.figures for row in self.rows), *self.published.values()]
        columns = list(dict.fromkeys(column for figures in every for column in figures))

        lines = [["case", *columns]]
        for case in cases:
            rows = [row for row in self.rows if row.case == case]
            if rows:
                lines.append(_line(case, rows, columns))
            if case in self.published:
                stated = self.published[case]
                cells = [f"{stated[column]:g}" if column in stated else "-" for column in columns]
                lines.append([f"{case}, published", *cells])
        return lines

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON."""
        write_json(path, {**asdict(self), "table": str(self).splitlines()})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Findings":
        """What :meth:`save` wrote."""
        raw = json.loads(Path(path).read_text())
        raw.pop("table")

        rows = []
        for row in raw.pop("rows"):
            row["seconds"] = _known(row["seconds"])
            row["figures"] = {column: _known(value) for column, value in row["figures"].items()}
            rows.append(Row(**row))
        return cls(**raw, rows=rows)


def _line(case: str, rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A case over its seeds; those that failed are counted beside its name."""
    good = [row for row in rows if not row.error]
    failed = len(rows) - len(good)
    label = f"{case} ({failed} failed)" if failed else case

    by_column = ([row.figures[c] for row in good if c in row.figures] for c in columns)
    return [label, *map(spread, by_column)]


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _short(value: object) -> str:
    return "-".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)
