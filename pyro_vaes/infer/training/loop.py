"""Epochs of steps, the held-out evaluation after each, and its row of the history."""

import time
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vaes.infer.batches.batches import derived_seed
from pyro_vaes.infer.training.evaluation import total_loss
from pyro_vaes.infer.training.plan import Training
from pyro_vaes.infer.training.resume import save_run
from pyro_vaes.infer.training.weight_average import evaluation_weights
from pyro_vaes.programs import Pair

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["run_epochs"]


def run_epochs(training: Training, *, progress: bool) -> None:
    """Train until the epochs are over or a callback stops the run.

    Arguments:
        training: The run.
        progress: Whether to show a progress bar.
    """
    run, prepared = training.run, training.prepared
    plan = prepared.plan
    _share_buffers(run.pair, plan.fabric)

    total = (plan.epochs - run.epoch) * len(prepared.batches) or None
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


def _epoch(training: Training, bar: "tqdm[object]") -> None:
    """One pass over the data and the held-out evaluation; fills one row of the history."""
    run, guard, prepared = training.run, training.guard, training.prepared
    fabric, history = prepared.plan.fabric, run.history
    started = time.perf_counter()
    bar.set_description(f"epoch {run.epoch + 1}/{run.total_epochs}")

    guard.start_epoch()
    for batch in prepared.batches.epoch(training.seed, run.epoch, prepared.place):
        args = run.pair.arguments(batch)
        units = training.units.of(args)
        value = training.step(run, args, units.num_data)
        guard.step(args, value, units.size)

        run.step += 1
        for callback in run.callbacks:
            callback.stepped(run)
        bar.update()
    train, norm = guard.finish_epoch()
    _share_buffers(run.pair, fabric)

    run.epoch += 1
    history.epochs.append(run.epoch)
    history.train.append(_mean(torch.tensor(train, dtype=torch.float64), fabric))
    history.grad_norm.append(norm)
    history.learning_rate.append(float(run.optimizer.param_groups[0]["lr"]))
    shown = {"train": f"{history.train[-1]:.2f}"}

    if prepared.held_out is not None:
        history.valid.append(_held_out_loss(training))
        shown["valid"] = f"{history.valid[-1]:.2f}"

    history.seconds.append(time.perf_counter() - started)
    bar.set_postfix(shown | {"unit": "nats/datum"})


def _held_out_loss(training: Training) -> float:
    """The loss per held-out datum, at the weights on which the run is to be evaluated."""
    run, prepared = training.run, training.prepared
    assert prepared.held_out is not None
    with evaluation_weights(run):
        total, count = total_loss(
            run.pair,
            prepared.bound,
            prepared.held_out,
            training.seed,
            prepared.place,
            prepared.plan.rank,
        )
    return _mean(torch.stack([total, count]), prepared.plan.fabric)


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
