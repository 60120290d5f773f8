"""The directory of a run: everything needed to repeat it, resume it, and look at it again as Python objects."""

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pyro_vaes import __version__
from pyro_vaes.data import ImageData
from pyro_vaes.infer import History, load_weights
from pyro_vaes.programs import Pair, Program

from .build import Model, build_pair, load_run_data, num_classes
from .options import Options
from .run_files import CHECKPOINT, RUN

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run as objects.

    Attributes:
        directory: Where it is.
        options: What defines it, every default filled in.
        facts: The content of `run.json`.
        data: The data set, with the preprocessing and the split of the run.
        vae: The module that holds the model, with the run's weights.
        model: The model.
        guide: The guide.
        history: Losses by epoch, in nats per datum.
    """

    directory: Path
    options: Options
    facts: dict[str, Any]
    data: ImageData
    vae: Model
    model: Program
    guide: Program
    history: History = field(default_factory=History)

    @property
    def num_classes(self) -> int:
        """The number of classes that a conditional model is given; 0 for the others."""
        return num_classes(self.options, self.data)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON in one atomic step."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    fresh.replace(path)


def versions() -> dict[str, Any]:
    """The versions of the packages and the machine, for the record."""
    packages = ("torch", "pyro-ppl", "torchvision", "numpy", "scikit-learn", "arviz", "arviz-base", "xarray")
    return {
        "versions": {"pyro-vaes": __version__, "python": platform.python_version()} | {p: version(p) for p in packages},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def describe(options: Options, data: ImageData, out: str) -> dict[str, Any]:
    """The content of `run.json`: options, versions, where the data are from and how they were split."""
    return {
        "format": FORMAT,
        "command": options.command(out),
        "options": options.to_json(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **versions(),
        "data": {
            "name": data.name,
            "source": data.provenance.source,
            "licence": data.provenance.licence,
            "remark": data.provenance.remark,
            "files_sha256": data.provenance.sha256,
            "image_shape": list(data.image_shape),
            "space": data.space,
            "split": str(data.splits),
            "rows": {name: len(part) for name, part in data.parts.items()},
            "rows_sha256": _fingerprints(data),
        },
    }


def _fingerprints(data: ImageData) -> dict[str, str]:
    """A hash of the raw images and labels of each part, in the order of the split."""
    fingerprints = {}
    for name, part in data.parts.items():
        digest = hashlib.sha256()
        for tensor in (part.images, part.labels):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().tobytes())
        fingerprints[name] = digest.hexdigest()
    return fingerprints


def read_options(directory: Path) -> tuple[Options, dict[str, Any]]:
    """The options and the whole content of a run's `run.json`.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the file is damaged.
    """
    path = directory / RUN
    if not path.is_file():
        near = sorted(str(p.parent) for p in directory.parent.glob(f"*/{RUN}"))[:5]
        hint = f"Beside it there are the runs {', '.join(near)}." if near else "Start one with: pyro-vaes train digits"
        raise FileNotFoundError(f"there is no run in {directory}: {RUN} is missing. {hint}")
    try:
        facts = json.loads(path.read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, this version reads {FORMAT}")
        return Options.from_json(facts["options"]), facts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it from a copy, or train again with "
            "--overwrite."
        ) from error


def reopen(directory: Path, options: Options, facts: dict[str, Any]) -> Run:
    """A run as its last checkpoint left it; with new weights if there is none yet.

    Raises:
        ValueError: If the data have changed, or the checkpoint is damaged or that of
            another pair.
    """
    data = load_run_data(options)
    recorded = facts.get("data", {}).get("rows_sha256", {})
    changed = [name for name, digest in _fingerprints(data).items() if recorded.get(name) != digest]
    if changed:
        raise ValueError(
            f"the {' and '.join(changed)} rows of {data.name} are not those of the run in {directory}: its data have "
            f"changed, or {RUN} has. Put the same files under --root, or train again with --overwrite."
        )

    run = Run(directory, options, facts, data, *build_pair(options, data))
    try:
        saved: dict[str, Any] = load_weights(directory / CHECKPOINT, run.model, run.guide)
    except FileNotFoundError:
        return run
    return replace(run, history=History(**saved.get("history", {})))


def as_device(name: str | None) -> torch.device:
    """The device of that name, the CPU for None.

    Raises:
        ValueError: If there is no such device here.

    Example:
        >>> as_device(None)
        device(type='cpu')
    """
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used here ({error}): leave it out to use the CPU.") from error
    return device


def open_run(path: str | Path, *, root: str | None = None, device: str | None = None) -> Run:
    """Open a run directory: data, model and guide with the weights of the last checkpoint.

    Arguments:
        path: The directory that `pyro-vaes train` wrote.
        root: The folder of the data files, where it is another one now.
        device: Where the weights go; the CPU by default.

    Raises:
        FileNotFoundError: If there is no run, or no checkpoint in it, or its data are missing.
        ValueError: If a file of the run is damaged, or the data have changed since.
    """
    directory = Path(path)
    options, facts = read_options(directory)
    if root is not None:
        options = replace(options, root=root)
    run = reopen(directory, options, facts)
    if not run.history.epochs:
        raise FileNotFoundError(
            f"the run in {directory} has no checkpoint of a finished epoch yet: go on with `pyro-vaes train --resume "
            f"--out {shlex.quote(str(directory))}`, or start again with --overwrite."
        )

    Pair(run.model, run.guide).to(as_device(device))
    return run
