"""The figures of a study beside the published ones: over seeds, as a table, as JSON."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from papers.table import aligned, markdown, spread, write_json

__all__ = ["Findings", "Row"]


@dataclass(frozen=True)
class Row:
    """One case with one seed.

    Attributes:
        case, seed: Which.
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
        study: Its name.
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

    def column(self, name: str) -> dict[str, list[float]]:
        """A column's figures by case, one for each seed; cases without it are left out."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if name in row.figures:
                found.setdefault(row.case, []).append(row.figures[name])
        return found

    def __str__(self) -> str:
        return "\n".join([self.title(), *aligned(self.table()), *self.summary, *([self.remark] if self.remark else [])])

    def title(self) -> str:
        """The study and its setting in one line."""
        shared = ", ".join(
            f"{name} {_short(value)}" for name, value in self.setting.items() if value not in (None, [], ())
        )
        return f"{self.study}: {shared}; mean ± sd over seeds"

    def markdown(self) -> str:
        """Title, table, summary and remark for a README."""
        notes = [*self.summary, *([self.remark] if self.remark else [])]
        return "\n\n".join([f"*{self.title()}.*", "\n".join(markdown(self.table())), *notes])

    def table(self) -> list[list[str]]:
        """Head and lines; a case's published figures stand in the line below it, those of cases not run at the end."""
        cases = list(dict.fromkeys([*(r.case for r in self.rows), *self.published]))
        every = [*(r.figures for r in self.rows), *self.published.values()]
        columns = list(dict.fromkeys(c for figures in every for c in figures))
        lines = [["case", *columns]]
        for case in cases:
            rows = [r for r in self.rows if r.case == case]
            good = [r for r in rows if not r.error]
            if rows:
                label = case if len(good) == len(rows) else f"{case} ({len(rows) - len(good)} failed)"
                lines.append([label, *(spread([r.figures[c] for r in good if c in r.figures]) for c in columns)])
            if case in self.published:
                stated = self.published[case]
                cells = [f"{stated[c]:g}" if c in stated else "-" for c in columns]
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
        rows = [
            {**r, "seconds": _known(r["seconds"]), "figures": {c: _known(v) for c, v in r["figures"].items()}}
            for r in raw.pop("rows")
        ]
        return cls(**raw, rows=[Row(**r) for r in rows])


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _short(value: object) -> str:
    return "-".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)
