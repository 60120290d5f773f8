"""The measurements of a comparison: as a table beside the published figures, and as JSON."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pyro_vaes.experiments.setting import Setting

__all__ = ["Comparison", "Measurement"]


@dataclass(frozen=True)
class Measurement:
    """One method with one seed, in nats per datum on test images.

    Attributes:
        method, seed: Which.
        elbo: Mean log importance weight, the evidence lower bound.
        log_likelihood: The importance-weighted estimate with the setting's number of particles.
        seconds_per_epoch: Median; nan where nothing was trained.
        inference_ms: Median time of the posterior of one batch, in milliseconds.
        guide_parameters: How many numbers the guide learns.
        error: What stopped the run, if anything did; the figures are nan then.
    """

    method: str
    seed: int
    elbo: float
    log_likelihood: float
    seconds_per_epoch: float
    inference_ms: float
    guide_parameters: int
    error: str = ""

    @property
    def gap(self) -> float:
        """The importance-weighted estimate minus the ELBO, at least 0."""
        return self.log_likelihood - self.elbo


@dataclass
class Comparison:
    """The measurements of a comparison beside the published figures.

    Attributes:
        setting: What the methods shared.
        measurements: One for each method and seed.
        published: Log-likelihood by method, in the paper's own setting.
        remark: How far the published figures can be compared, and where they come from.
        about: Command, machine and library versions.
    """

    setting: Setting
    measurements: list[Measurement] = field(default_factory=list)
    published: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""
    about: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        head = ("method", "ELBO", "IW", "IW - ELBO", "s/epoch", "ms/batch", "published")
        table = [head, *self._lines()]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        rows = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        return "\n".join([self.title(), *rows, *([self.remark] if self.remark else [])])

    def title(self) -> str:
        s = self.setting
        used = "" if s.train_images is None else f", {s.train_images} training images"
        tested = "all" if s.test_images is None else str(s.test_images)
        return (
            f"{s.data}, {s.output} output, decoder {'-'.join(map(str, (s.latent_dim, *s.hidden)))}, {s.epochs} epochs"
            f"{used}; nats per datum on {tested} test images, IW with {s.num_particles} particles; mean ± sd over seeds"
        )

    def markdown(self) -> str:
        """The same table for a README."""
        head = "| method | ELBO | IW | IW − ELBO | s/epoch | ms/batch | published |\n|---|---|---|---|---|---|---|"
        return "\n".join([f"*{self.title()}.*", "", head, *(f"| {' | '.join(line)} |" for line in self._lines())])

    def by_method(self) -> dict[str, list[Measurement]]:
        """The measurements by method, in the order of their first appearance."""
        grouped: dict[str, list[Measurement]] = {}
        for m in self.measurements:
            grouped.setdefault(m.method, []).append(m)
        return grouped

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = []
        for name, all_seeds in self.by_method().items():
            good = [m for m in all_seeds if not m.error]
            label = name if len(good) == len(all_seeds) else f"{name} ({len(all_seeds) - len(good)} failed)"
            stated = f"{self.published[name]:g}" if name in self.published else "-"
            lines.append(
                (
                    label,
                    _spread([m.elbo for m in good]),
                    _spread([m.log_likelihood for m in good]),
                    _spread([m.gap for m in good]),
                    _median([m.seconds_per_epoch for m in good]),
                    _median([m.inference_ms for m in good]),
                    stated,
                )
            )
        return lines

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, by a rename, so that a killed run leaves the last whole file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # JSON has no nan
        measured = [{n: None if v != v else v for n, v in asdict(m).items()} for m in self.measurements]
        content = {**asdict(self), "measurements": measured, "table": str(self).splitlines()}
        text = json.dumps(content, indent=1, allow_nan=False)
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Comparison":
        """What :meth:`save` wrote."""
        raw = json.loads(Path(path).read_text())
        raw["setting"] = {n: tuple(v) if isinstance(v, list) else v for n, v in raw["setting"].items()}
        raw["measurements"] = [{n: math.nan if v is None else v for n, v in m.items()} for m in raw["measurements"]]
        setting, measurements = Setting(**raw["setting"]), [Measurement(**m) for m in raw["measurements"]]
        return cls(setting, measurements, raw["published"], raw["remark"], raw["about"])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def _median(values: Sequence[float]) -> str:
    known = [v for v in values if v == v]
    return f"{statistics.median(known):.1f}" if known else "-"
