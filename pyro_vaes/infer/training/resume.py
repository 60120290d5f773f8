"""Writing a run's checkpoints, and going on from them to the numbers of an uninterrupted run.

No generator's state is kept: an epoch's noise depends only on the seed, the epoch and the process.
"""

import logging
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.infer.batches.batches import Batches, LoaderBatches
from pyro_vaes.infer.training.callbacks import Run
from pyro_vaes.infer.training.checkpoint import holds_only_a_checkpoint, read_checkpoint, write_checkpoint
from pyro_vaes.infer.training.nonfinite import Guard

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["is_saved", "resume_run", "save_run", "writable"]

logger = logging.getLogger(__name__)
_START_ANEW = Cure(
    "resume", False, words="load the weights with load_weights(directory, model, guide) and start a new run"
)


def writable(directory: pathlib.Path, rank: int = 0) -> pathlib.Path:
    """Make sure, before any training, that checkpoints can be written and overwrite nothing else."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        probe = directory.with_name(f".{directory.name}.probe{rank}")
        probe.write_text("")
        probe.unlink()
        return holds_only_a_checkpoint(directory)
    except OSError as error:
        raise ValueError(
            f"Checkpoints cannot be written to {directory}: {error}. Choose a directory you may write to."
        ) from error


def is_saved(directory: pathlib.Path) -> bool:
    """Whether there is a checkpoint, whole or left behind by a kill between two renames."""
    return directory.exists() or directory.with_name(f".{directory.name}.old").exists()


def save_run(
    directory: pathlib.Path,
    run: Run,
    guard: Guard,
    batches: Batches,
    seed: int,
    fabric: "Fabric | None",
    last: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the run's state; ``last`` are the weights to go on from where they are not those to use."""
    if fabric is not None and fabric.global_rank > 0:
        return
    training = {
        "optimizer": run.optimizer.state_dict(),
        "callbacks": [c.state_dict() for c in run.callbacks],
        "guard": guard.state(),
        "loader": batches.state() if isinstance(batches, LoaderBatches) else [],
        "parameters": list(run.pair.parameters),
        "last": None if last is None else {n: t.cpu() for n, t in last.items()},
    }
    facts = {"epoch": run.epoch, "step": run.step, "seed": seed, "stop": run.stop, "history": run.history.to_dict()}
    facts["optimizer"] = type(run.optimizer).__name__
    write_checkpoint(directory, run.pair.state(), facts, training)


def resume_run(directory: pathlib.Path, run: Run, guard: Guard, batches: Batches) -> int:
    """Put a run back where its checkpoint left it; returns the run's seed.

    Raises:
        ValueError: The checkpoint is damaged, holds no training state, or belongs to another run.
    """
    state, facts, training = read_checkpoint(directory)
    if training is None:
        raise UsageError(
            f"{directory} holds weights but no training state, so training cannot resume from it.", _START_ANEW
        )
    try:
        _check_same_run(directory, run, facts, training)
        last = cast(dict[str, Tensor] | None, training["last"])
        run.pair.load_state(state if last is None else last)
        run.optimizer.load_state_dict(cast(dict[str, object], training["optimizer"]))
        for callback, saved in zip(run.callbacks, cast(list[dict[str, object]], training["callbacks"]), strict=True):
            callback.load_state_dict(saved)
        guard.load_state(cast(dict[str, int], training["guard"]))
        if isinstance(batches, LoaderBatches):
            batches.load_state(cast(list[Tensor], training["loader"]))
        run.history.__dict__.update(cast(dict[str, object], facts["history"]))
        run.epoch, run.step, run.stop = int(str(facts["epoch"])), int(str(facts["step"])), str(facts["stop"])
        seed = int(str(facts["seed"]))
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"The checkpoint in {directory} lacks what a run needs ({type(error).__name__}: {error}). Was it written "
            "by another version, or changed by hand?",
            _START_ANEW,
        ) from error
    if not math.isfinite(sum(run.history.train)):
        logger.warning("The checkpoint's history holds losses that are not finite.")
    return seed


def _check_same_run(
    directory: pathlib.Path, run: Run, facts: Mapping[str, object], training: Mapping[str, object]
) -> None:
    if training["parameters"] != list(run.pair.parameters):
        raise ValueError(
            f"The checkpoint in {directory} was trained with other parameters than this pair has. Build the pair with "
            "the same arguments, and freeze the same layers."
        )
    saved = cast(list[dict[str, object]], training["callbacks"])
    if len(saved) != len(run.callbacks):
        raise ValueError(
            f"The checkpoint in {directory} was written with {len(saved)} callbacks, but now there are "
            f"{len(run.callbacks)}; resume with the same ones."
        )
    given = type(run.optimizer).__name__
    written = facts.get("optimizer", given)  # older checkpoints do not say
    if written != given:
        raise ValueError(
            f"The checkpoint in {directory} was written with {written}, but optim gives {given}: resume with the same, "
            "or load the weights with load_weights(directory, model, guide) and start a new run."
        )
