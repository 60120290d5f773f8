"""An experiment of a paper as cases that are trained and measured, at several budgets, with the published figures."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Generic, TypeVar

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from papers.findings import Findings, Row

__all__ = ["BUDGETS", "Case", "Job", "Result", "Study"]

BUDGETS = ("smoke", "cpu", "gpu")
S = TypeVar("S")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """How one case is to be run: the seed of weights, order and noise; the folder of data files; the device."""

    seed: int = 0
    root: str | os.PathLike[str] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: bool = False


@dataclass(frozen=True)
class Result:
    """What one case showed: figures by column, pictures by name, and figures of what else was measured, by name."""

    figures: Mapping[str, float]
    pictures: Mapping[str, Figure] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Case = Callable[[S, Job], Result]
"""From what the cases share and a job to what the case showed."""


@dataclass(frozen=True)
class Study(Generic[S]):
    """A paper's experiment.

    Attributes:
        name: Name of the paper's method.
        about: What it shows, in one line.
        data: Names of the data sets it runs on, the default first.
        setting: From budget and data to what the cases share, a frozen dataclass of plain values.
        cases: From the setting to what is trained and measured, by name.
        published: By data and case, figures by column.
        remark: From the setting to where the published figures are from and how far they can be compared.
        summary: Lines computed across the rows.
    """

    name: str
    about: str
    data: tuple[str, ...]
    setting: Callable[[str, str], S]
    cases: Callable[[S], Mapping[str, Case[S]]]
    published: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    remark: Callable[[S], str] = lambda _: ""
    summary: Callable[[Findings], Sequence[str]] = lambda _: ()

    def run(
        self,
        budget: str = "cpu",
        *,
        data: str | None = None,
        seeds: Sequence[int] = (1, 2, 3),
        only: Sequence[str] = (),
        root: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        out: str | os.PathLike[str] | None = None,
        about: Mapping[str, object] | None = None,
        progress: bool = True,
    ) -> Findings:
        """Train and measure every case with every seed.

        Arguments:
            budget: One of `BUDGETS`.
            data: One of :attr:`data`; by default the first, for ``"smoke"`` digits where it is among them.
            seeds: One run of every case for each; only the first counts for ``"smoke"``.
            only: Names of cases, if not all.
            root: Folder of the data files, as for :func:`~pyro_vaes.data.load_data`.
            device: Where to train.
            out: A JSON file, written after each case, with the pictures in a folder of its name beside it. Cases that
                it holds already, in the same setting, are not run again.
            about: Command, machine and versions, for the record.
            progress: Whether to show progress bars.

        Raises:
            ValueError: An unknown budget, data set or case; ``out`` holds another study or setting.
        """
        data = self._data(budget, data)
        setting = self.setting(budget, data)
        cases = self._chosen(self.cases(setting), only, budget)

        findings = Findings(
            self.name,
            _plain(setting),
            published=self.published.get(data, {}),
            remark=self.remark(setting),
            about={"experiment": self.name, "budget": budget, **(about or {})},
        )
        if out is not None and Path(out).exists():
            findings.rows = _earlier(out, findings)

        for seed in seeds[:1] if budget == "smoke" else seeds:
            for name, case in cases.items():
                if findings.has(name, seed):
                    continue

                job = Job(seed, root, torch.device(device), progress)
                rows, pictures = _measured(name, case, setting, job)
                findings.rows += rows
                findings.summary = list(self.summary(findings))

                if out is not None:
                    findings.save(out)
                    _save(pictures, Path(out).with_suffix(""), f"{name}-{seed}")
                for figure in pictures.values():
                    plt.close(figure)

        findings.summary = list(self.summary(findings))
        return findings

    def _data(self, budget: str, data: str | None) -> str:
        """The name of the data set, once budget and name are known to be good."""
        if budget not in BUDGETS:
            raise ValueError(f"The budgets are {', '.join(BUDGETS)}, but got {budget!r}.")

        if data is None:
            small = budget == "smoke" and "digits" in self.data
            data = "digits" if small else self.data[0]
        if data not in self.data:
            raise ValueError(f"{self.name} runs on {', '.join(self.data)}, but got {data!r}.")
        return data

    def _chosen(self, cases: Mapping[str, Case[S]], only: Sequence[str], budget: str) -> Mapping[str, Case[S]]:
        """The cases that are named, or all; in the order of the study."""
        unknown = [name for name in only if name not in cases]
        if unknown:
            # names may have commas in them
            known, got = ("; ".join(map(repr, names)) for names in (cases, unknown))
            raise ValueError(f"The budget {budget!r} compares {known}, but got {got}.")
        return {name: case for name, case in cases.items() if not only or name in only}


def _measured(name: str, case: Case[S], setting: S, job: Job) -> tuple[list[Row], Mapping[str, Figure]]:
    started = time.perf_counter()
    try:
        result = case(setting, job)
    except ArithmeticError as error:
        # a run that diverged is a finding; anything else is a mistake
        logger.warning("%s with seed %d stopped: %s", name, job.seed, error)
        return [Row(name, job.seed, error=str(error).splitlines()[0])], {}

    rows = [Row(name, job.seed, dict(result.figures), time.perf_counter() - started)]
    for other, figures in result.beside.items():
        rows.append(Row(other, job.seed, dict(figures)))
    return rows, result.pictures


def _earlier(out: str | os.PathLike[str], findings: Findings) -> list[Row]:
    """The rows of the file that need not be run again."""
    earlier = Findings.read(out)
    if (earlier.study, earlier.setting) != (findings.study, findings.setting):
        raise ValueError(
            f"{out} holds another study or setting ({earlier.title()}). Choose another file, or delete it."
        )

    return [row for row in earlier.rows if not row.error]


def _plain(setting: object) -> dict[str, object]:
    """The setting as JSON gives it back."""
    assert is_dataclass(setting) and not isinstance(setting, type)
    plain: dict[str, object] = json.loads(json.dumps(asdict(setting)))
    return plain


def _save(pictures: Mapping[str, Figure], folder: Path, stem: str) -> None:
    for name, figure in pictures.items():
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{stem}-{name}".lower()).strip("-")
        figure.savefig(folder / f"{slug}.png", dpi=110, bbox_inches="tight", facecolor="white")
