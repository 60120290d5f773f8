"""Writing a run's checkpoints, and going on from them to the numbers of an uninterrupted run.

No generator's state is kept: an epoch's noise depends only on the seed, the epoch and the process.
"""

import logging
import math
import pathlib
from collections.abc import Mapping

from torch import Tensor

from pyro_vaes.errors import Cure, UsageError

from ..batches.batches import LoaderBatches
from ..callback import Run
from .checkpoint import (
    RunFacts,
    TrainingState,
    is_saved,
    read_checkpoint,
    write_checkpoint,
)
from .nonfinite import Guard
from .plan import Prepared, Training

logger = logging.getLogger(__name__)
_START_ANEW = Cure(
    "resume", False, words="load the weights with load_weights(directory, model, guide) and start a new run"
)


def save_run(training: Training, last: Mapping[str, Tensor]) -> None:
    """Write the run's state, where it is to be written and by the first process alone.

    Arguments:
        training: The run.
        last: The weights to go on from, which need not be those to use.
    """
    prepared, run = training.prepared, training.run
    if prepared.directory is None or prepared.plan.rank > 0:
        return

    batches = prepared.batches
    state: TrainingState = {
        "optimizer": run.optimizer.state_dict(),
        "callbacks": [c.state_dict() for c in run.callbacks],
        "guard": training.guard.state(),
        "loader": batches.state() if isinstance(batches, LoaderBatches) else [],
        "parameters": list(run.pair.parameters),
        "last": {name: tensor.cpu() for name, tensor in last.items()},
    }
    facts: RunFacts = {
        "epoch": run.epoch,
        "step": run.step,
        "seed": training.seed,
        "stop": run.stop,
        "history": run.history.to_dict(),
        "optimizer": type(run.optimizer).__name__,
    }
    write_checkpoint(prepared.directory, run.pair.state(), facts, state)


def resume_run(prepared: Prepared, run: Run, guard: Guard) -> int:
    """Put a run back where its checkpoint left it, where that is wanted and there is one.

    Returns:
        The run's seed.

    Raises:
        ValueError: The checkpoint is damaged, has no training state, or is of another run.
    """
    directory, batches = prepared.directory, prepared.batches
    if directory is None or not prepared.plan.resume or not is_saved(directory):
        return prepared.seed

    state, facts, training = read_checkpoint(directory)
    if training is None:
        raise UsageError(
            f"{directory} holds weights but no training state, so training cannot resume from it.", _START_ANEW
        )
    try:
        _check_same_run(directory, run, facts, training)
        last = training["last"]
        run.pair.load_state(state if last is None else last)
        run.optimizer.load_state_dict(training["optimizer"])
        for callback, saved in zip(run.callbacks, training["callbacks"], strict=True):
            callback.load_state_dict(saved)
        guard.load_state(training["guard"])
        if isinstance(batches, LoaderBatches):
            batches.load_state(training["loader"])

        vars(run.history).update(facts["history"])
        run.epoch, run.step = int(facts["epoch"]), int(facts["step"])
        run.stop = str(facts["stop"])
        seed = int(facts["seed"])
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"The checkpoint in {directory} lacks what a run needs ({type(error).__name__}: {error}). Was it written "
            "by another version, or changed by hand?",
            _START_ANEW,
        ) from error
    if not math.isfinite(sum(run.history.train)):
        logger.warning("The checkpoint's history holds losses that are not finite.")
    return seed


def _check_same_run(directory: pathlib.Path, run: Run, facts: RunFacts, training: TrainingState) -> None:
    """Raise where the checkpoint belongs to a run of another kind."""
    if training["parameters"] != list(run.pair.parameters):
        raise ValueError(
            f"The checkpoint in {directory} was trained with other parameters than this pair "
            "has. Build the pair with the same arguments, and freeze the same layers."
        )

    if len(training["callbacks"]) != len(run.callbacks):
        raise ValueError(
            f"The checkpoint in {directory} was written with {len(training['callbacks'])} "
            f"callbacks, but now there are {len(run.callbacks)}; resume with the same ones."
        )

    given = type(run.optimizer).__name__
    written = facts.get("optimizer", given)  # older checkpoints do not say
    if written != given:
        raise ValueError(
            f"The checkpoint in {directory} was written with {written}, but optim gives "
            f"{given}: resume with the same, or load the weights with "
            "load_weights(directory, model, guide) and start a new run."
        )
