"""Saving and loading a pair without pickle: weights as safetensors, facts as JSON, training state weights-only.

A directory holds ``weights.safetensors`` (parameters and buffers), ``pair.json`` (names, versions, hashes, whatever
else the caller says) and, for a run that can resume, ``training.pt`` (optimiser, callbacks, loader), read with
``torch.load(weights_only=True)``. It is written under another name and renamed, so that a kill at any moment leaves
either the old one or the new one.
"""

import hashlib
import json
import pathlib
import pickle
import shutil
from collections.abc import Mapping
from typing import TypedDict

import pyro
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.programs import Pair, Program


class RunFacts(TypedDict, total=False):
    """What ``pair.json`` says of a run."""

    epoch: int
    step: int
    seed: int
    stop: str
    history: dict[str, object]
    optimizer: str


class TrainingState(TypedDict):
    """What a run needs to go on, beside the weights to use.

    Attributes:
        optimizer, callbacks, guard: Their states.
        loader: States of the generators of a data loader.
        parameters: Names of the trained parameters.
        last: The weights to go on from; None where these are the weights to use.
    """

    optimizer: dict[str, object]
    callbacks: list[dict[str, object]]
    guard: dict[str, int]
    loader: list[Tensor]
    parameters: list[str]
    last: dict[str, Tensor] | None


WEIGHTS, FACTS, TRAINING = "weights.safetensors", "pair.json", "training.pt"


def save_weights(directory: str | pathlib.Path, model: Program, guide: Program, *args: object) -> None:
    """Write the parameters and buffers of a pair, without pickle.

    Arguments:
        directory: Where to; created if need be, and replaced as a whole if it holds a checkpoint.
        model: The model.
        guide: The guide.
        args: Arguments of one batch; only needed when a program holds free-standing ``pyro.param`` statements.
    """
    pair = _materialised(model, guide, args)
    write_checkpoint(pathlib.Path(directory), pair.state(), {})


def load_weights(directory: str | pathlib.Path, model: Program, guide: Program, *args: object) -> dict[str, object]:
    """Copy saved parameters and buffers into a live pair, and return the facts saved beside them.

    Arguments:
        directory: What :func:`save` or ``fit(checkpoint=...)`` wrote.
        model: The model, built with the same arguments as the saved one.
        guide: The guide, likewise.
        args: Arguments of one batch; only needed when a program holds free-standing ``pyro.param`` statements.

    Raises:
        FileNotFoundError: There is nothing saved there.
        ValueError: The files are damaged, or belong to another pair.
    """
    state, facts, _ = read_checkpoint(pathlib.Path(directory))
    _materialised(model, guide, args).load_state(state)
    return dict(facts)


def _materialised(model: Program, guide: Program, args: tuple[object, ...]) -> Pair:
    pair = Pair(model, guide)
    if args:
        pair.materialise(args)
    if not pair.state():
        raise ValueError(
            "This pair has no modules to save or load. If its parameters are pyro.param statements, pass the "
            "arguments of one batch too, so that they exist: save_weights(directory, model, guide, x)."
        )
    return pair


def _beside(directory: pathlib.Path, ending: str) -> pathlib.Path:
    """A hidden neighbour of a directory, on the same disk."""
    return directory.with_name(f".{directory.name}.{ending}")


def is_saved(directory: pathlib.Path) -> bool:
    """Whether there is a checkpoint, whole or left behind by a kill between two renames."""
    return directory.exists() or _beside(directory, "old").exists()


def _holds_only_a_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    """The directory itself, if replacing it loses nothing but an older checkpoint.

    Raises:
        ValueError: It is a file, or holds other files.
    """
    if not directory.exists():
        return directory
    if not directory.is_dir():
        raise ValueError(f"The checkpoint {directory} is a file; a directory is wanted.")

    others = {file.name for file in directory.iterdir()} - {WEIGHTS, FACTS, TRAINING}
    if others:
        own = directory / "checkpoint"
        raise UsageError(
            f"A checkpoint replaces its directory as a whole, but {directory} holds other "
            f"files ({', '.join(sorted(others)[:4])}).",
            Cure("checkpoint", str(own), words=f"choose a directory of its own, such as {own}"),
        )
    return directory


def writable(directory: pathlib.Path, rank: int = 0) -> pathlib.Path:
    """Make sure, before any training, that checkpoints can be written and overwrite nothing else."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(directory, f"probe{rank}")
        probe.write_text("")
        probe.unlink()
        return _holds_only_a_checkpoint(directory)
    except OSError as error:
        raise ValueError(
            f"Checkpoints cannot be written to {directory}: {error}. Choose a directory you may write to."
        ) from error


def write_checkpoint(
    directory: pathlib.Path,
    state: Mapping[str, Tensor],
    facts: RunFacts,
    training: TrainingState | None = None,
) -> None:
    """Write a checkpoint directory in one atomic step.

    Raises:
        ValueError: The directory cannot be written, or holds other files, which would be
            lost.
    """
    _holds_only_a_checkpoint(directory)
    fresh, old = _beside(directory, "new"), _beside(directory, "old")
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in state.items()}
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(tensors, fresh / WEIGHTS)
        if training is not None:
            torch.save(dict(training), fresh / TRAINING)

        hashes = {file.name: _hash(file) for file in sorted(fresh.iterdir())}
        versions = {"torch": torch.__version__, "pyro": pyro.__version__}
        text = json.dumps({**facts, "sha256": hashes, "versions": versions}, indent=1)
        (fresh / FACTS).write_text(text)

        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
            directory.rename(old)
        fresh.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"The checkpoint cannot be written to {directory}: {error}. Choose a directory "
            "that you may write to, on a disk with space."
        ) from error


def read_checkpoint(
    directory: pathlib.Path,
) -> tuple[dict[str, Tensor], RunFacts, TrainingState | None]:
    """Weights, facts and training state (None without one) of a directory, hashes compared.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: A file is missing, truncated or changed.
    """
    if not (directory / FACTS).exists():
        # a kill between the two renames leaves the old one
        old = _beside(directory, "old")
        if not (old / FACTS).exists():
            raise FileNotFoundError(f"There is no checkpoint in {directory}: {FACTS} is missing. Is the path right?")
        directory = old

    def damaged(what: str) -> ValueError:
        return ValueError(f"The checkpoint in {directory} is damaged: {what}. Restore it from a copy, or train again.")

    try:
        facts = json.loads((directory / FACTS).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise damaged(f"{FACTS} is no JSON ({error})") from error
    hashes = facts.get("sha256") if isinstance(facts, dict) else None
    if not isinstance(hashes, dict) or WEIGHTS not in hashes:
        raise damaged(f"{FACTS} does not say which files belong to it")

    for name, wanted in hashes.items():
        file = directory / name
        if not file.exists():
            raise damaged(f"{name} is missing")
        if _hash(file) != wanted:
            raise damaged(f"{name} has {file.stat().st_size} bytes whose hash differs")

    training = None
    try:
        weights = load_file(directory / WEIGHTS)
        if TRAINING in hashes:
            training = torch.load(directory / TRAINING, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise damaged(f"a file cannot be read ({error})") from error
    return weights, facts, training


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
