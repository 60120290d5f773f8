"""The measurements of a comparison: as a table beside the published figures, and as JSON."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pyro_vaes.experiments.setting import Setting
from pyro_vaes.experiments.table import aligned, markdown, spread, write_json

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
        return "\n".join([self.title(), *aligned(self._table()), *([self.remark] if self.remark else [])])

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
        return "\n".join([f"*{self.title()}.*", "", *markdown(self._table())])

    def by_method(self) -> dict[str, list[Measurement]]:
        """The measurements by method, in the order of their first appearance."""
        grouped: dict[str, list[Measurement]] = {}
        for m in self.measurements:
            grouped.setdefault(m.method, []).append(m)
        return grouped

    def _table(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = [("method", "ELBO", "IW", "IW − ELBO", "s/epoch", "ms/batch", "published")]
        for name, all_seeds in self.by_method().items():
            good = [m for m in all_seeds if not m.error]
            label = name if len(good) == len(all_seeds) else f"{name} ({len(all_seeds) - len(good)} failed)"
            stated = f"{self.published[name]:g}" if name in self.published else "-"
            lines.append(
                (
                    label,
                    spread([m.elbo for m in good]),
                    spread([m.log_likelihood for m in good]),
                    spread([m.gap for m in good]),
                    _median([m.seconds_per_epoch for m in good]),
                    _median([m.inference_ms for m in good]),
                    stated,
                )
            )
        return lines

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON."""
        write_json(path, {**asdict(self), "table": str(self).splitlines()})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Comparison":
        """What :meth:`save` wrote."""
        raw = json.loads(Path(path).read_text())
        raw["setting"] = {n: tuple(v) if isinstance(v, list) else v for n, v in raw["setting"].items()}
        raw["measurements"] = [{n: math.nan if v is None else v for n, v in m.items()} for m in raw["measurements"]]
        setting, measurements = Setting(**raw["setting"]), [Measurement(**m) for m in raw["measurements"]]
        return cls(setting, measurements, raw["published"], raw["remark"], raw["about"])


def _median(values: Sequence[float]) -> str:
    known = [v for v in values if v == v]
    return f"{statistics.median(known):.1f}" if known else "-"
