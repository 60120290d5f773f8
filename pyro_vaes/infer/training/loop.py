"""Epochs of steps, the held-out evaluation after each, and what a run leaves behind."""

import time
from typing import TYPE_CHECKING

import pyro
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vaes.programs import Pair

from ..batches.batches import derived_seed
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
            pyro.util.set_rng_seed(derived_seed(training.seed, run.epoch, plan.rank))
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
    run, guard, prepared = training.run, training.guard, training.prepared
    fabric, history = prepared.plan.fabric, run.history
    started = time.perf_counter()
    bar.set_description(f"epoch {run.epoch + 1}/{run.total_epochs}")

    guard.start_epoch()
    for batch in prepared.batches.epoch(training.seed, run.epoch, prepared.place):
        args = run.pair.arguments(batch)
        units = training.units.of(args)
        value = training.step(args, units.num_data)
        guard.step(args, value, units.size)

        run.step += 1
        for callback in run.callbacks:
            callback.stepped(run)
        bar.update()
    sums, norm = guard.finish_epoch()
    _share_buffers(run.pair, fabric)

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
