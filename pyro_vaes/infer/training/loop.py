"""Epochs of steps, the held-out evaluation after each, and what a run leaves behind."""

import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vaes.programs import Pair

from ..batches.batches import LoaderBatches, derived_seed
from ..callback import State
from ..engines import GraphDiffers
from ..history import History
from .evaluation import total_loss
from .plan import Training
from .resume import save_run
from .weight_average import (
    evaluation_weights,
    use_evaluation_weights,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def run_epochs(training: Training, *, progress: bool) -> History:
    """Train until the epochs are over or a callback stops the run.

    Arguments:
        training: The run.
        progress: Whether to show a progress bar.
    """
    run, plan = training.run, training.prepared.plan
    _share_buffers(run.pair, plan.fabric)

    total = (plan.epochs - run.epoch) * run.steps_per_epoch or None
    hidden = not progress or plan.rank > 0
    with tqdm(total=total, disable=hidden, unit="step", dynamic_ncols=True) as bar:
        while run.epoch < plan.epochs and not run.stop:
            _epoch(training, bar)

            with evaluation_weights(run) as last:
                for callback in run.callbacks:
                    callback.epoch(run)
                run.history.stopped = run.stop
                save_run(training, last)

    _close(training)
    return run.history


def _epoch(training: Training, bar: "tqdm[object]") -> None:
    """One pass over the data and the held-out evaluation; fills a row of the history."""
    run, prepared = training.run, training.prepared
    fabric, history = prepared.plan.fabric, run.history
    started = time.perf_counter()

    sums, norm = _steps_of_epoch(training, bar)
    _share_buffers(run.pair, fabric)
    history.engine = training.step.engine.name
    history.engine_note = training.step.engine.reason

    run.epoch += 1
    history.epochs.append(run.epoch)
    history.train.append(_mean(sums, fabric))
    history.grad_norm.append(norm)
    history.learning_rate.append(float(run.optimizer.param_groups[0]["lr"]))
    shown = {"train": f"{history.train[-1]:.2f}"}

    if prepared.held_out is not None:
        with evaluation_weights(run):
            sums = total_loss(
                run.pair,
                prepared.bound,
                prepared.held_out,
                training.units,
                training.seed,
                prepared.place,
                prepared.plan.rank,
            )
        history.valid.append(_mean(sums, fabric))
        shown["valid"] = f"{history.valid[-1]:.2f}"

    history.seconds.append(time.perf_counter() - started)
    bar.set_postfix(shown | {"unit": "nats/datum"})


def _steps_of_epoch(training: Training, bar: "tqdm[object]") -> tuple[Tensor, float]:
    """All steps of an epoch; once more, eagerly, where a graph turned out to be wrong."""
    engine = training.step.engine
    engine.start_epoch()
    if engine.is_off:
        return _steps(training, bar)

    before, shown = _EpochStart.of(training), bar.n
    try:
        return _steps(training, bar)
    except GraphDiffers as error:
        number = training.run.epoch + 1
        warnings.warn(
            f"The steps of epoch {number} ran as a graph, but {error}. The epoch "
            "is done again, and all steps to come are taken eagerly (compile=False).",
            stacklevel=4,
        )

    before.restore(training)
    bar.n = shown
    return _steps(training, bar)


def _steps(training: Training, bar: "tqdm[object]") -> tuple[Tensor, float]:
    """Take the steps of an epoch; their sum of losses and number of data, and the mean norm."""
    run, guard, prepared = training.run, training.guard, training.prepared
    title = f"epoch {run.epoch + 1}/{run.total_epochs}"
    bar.set_description(title)

    def announce(what: str) -> None:
        bar.set_description(f"{title} {what}".rstrip())

    training.step.engine.announce = announce
    pyro.util.set_rng_seed(derived_seed(training.seed, run.epoch, prepared.plan.rank))
    guard.start_epoch()
    for batch in prepared.batches.epoch(training.seed, run.epoch, prepared.place):
        args = run.pair.arguments(batch)
        units = training.units.of(args)
        value = training.step(args, units.num_data)
        guard.step(args, value, units.size, training.step.outcome)

        run.step += 1
        for callback in run.callbacks:
            callback.stepped(run)
        bar.update()
    return guard.finish_epoch()


@dataclass(frozen=True)
class _EpochStart:
    """Everything that the steps of an epoch change."""

    weights: dict[str, Tensor]
    optimizer: Mapping[str, object]
    callbacks: list[State]
    guard: dict[str, int]
    loader: list[Tensor]
    step: int
    skipped: int

    @classmethod
    def of(cls, training: Training) -> "_EpochStart":
        """What there is before the first step."""
        run, batches = training.run, training.prepared.batches

        callbacks = []
        for callback in run.callbacks:
            callbacks.append(copy.deepcopy(callback.state_dict()))
        loader = []
        if isinstance(batches, LoaderBatches):
            loader = batches.state()

        return cls(
            weights=run.pair.snapshot(),
            optimizer=copy.deepcopy(run.optimizer.state_dict()),
            callbacks=callbacks,
            guard=training.guard.state(),
            loader=loader,
            step=run.step,
            skipped=run.history.skipped,
        )

    def restore(self, training: Training) -> None:
        """Go back to it."""
        run, batches = training.run, training.prepared.batches
        run.pair.load_state(self.weights)
        run.optimizer.load_state_dict(copy.deepcopy(dict(self.optimizer)))

        for callback, state in zip(run.callbacks, self.callbacks, strict=True):
            callback.load_state_dict(state)
        training.guard.load_state(self.guard)
        if isinstance(batches, LoaderBatches):
            batches.load_state(self.loader)
        run.step, run.history.skipped = self.step, self.skipped


def _close(training: Training) -> None:
    """Leave the right weights behind, let callbacks finish, write the last checkpoint."""
    run, fabric = training.run, training.prepared.plan.fabric
    last = run.pair.snapshot()

    use_evaluation_weights(run)
    for callback in run.callbacks:
        callback.finish(run)
    if run.callbacks:  # without any, the weights are those of the last epoch's checkpoint
        save_run(training, last)

    if fabric is not None:
        fabric.barrier()  # nobody may look for the checkpoint before it is written


def _mean(sums: Tensor, fabric: "Fabric | None") -> float:
    """A sum divided by a number of data, both over all processes."""
    if fabric is not None:
        shared = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")
        assert isinstance(shared, Tensor)
        sums = shared
    return (sums[0] / sums[1]).item()


def _share_buffers(pair: Pair, fabric: "Fabric | None") -> None:
    """Give every process the first one's buffers, which no gradient keeps together."""
    if fabric is None or fabric.world_size == 1:
        return
    for module in pair.modules.values():
        for buffer in module.buffers():
            buffer.copy_(fabric.broadcast(buffer))
