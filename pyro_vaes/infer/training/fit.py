"""The training loop: any pair, any bound, any data.

Each step minimises the loss of the bound per datum,

    loss / B,    loss = -bound summed over the batch's B data,

so that learning rates and clipping do not depend on the batch size. Everything is reported in nats per datum.
"""

import contextlib
import pathlib
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_vaes.infer.batches.batches import Batches, as_batches, derived_seed, train_and_valid
from pyro_vaes.infer.bounds.bound import Bound, layers
from pyro_vaes.infer.bounds.host_sync import known_modules, quiet_elbo
from pyro_vaes.infer.bounds.importance import ImportanceWeighted_ELBO
from pyro_vaes.infer.checks.last_batch import enough_rows
from pyro_vaes.infer.checks.preflight import first_of, preflight, preflight_held_out
from pyro_vaes.infer.handlers import local_parameters
from pyro_vaes.infer.history import History
from pyro_vaes.infer.training.arguments import as_bound, as_callbacks, as_device, whole_number
from pyro_vaes.infer.training.callbacks import Callback, KLWarmup, Run, SoftFreeBits
from pyro_vaes.infer.training.evaluation import NumData, total_loss
from pyro_vaes.infer.training.nonfinite import Guard, OnNaN, num_rows
from pyro_vaes.infer.training.resume import is_saved, resume_run, save_run, writable
from pyro_vaes.infer.training.step import MakeOptimizer, Step, make_optimizer
from pyro_vaes.infer.training.weight_average import settle, settled
from pyro_vaes.programs.pair import Pair, preserve_rng
from pyro_vaes.programs.reach import Program

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["fit"]


def fit(
    model: Program,
    guide: Program,
    data: object,
    *,
    loss: ELBO | None = None,
    optim: MakeOptimizer | Optimizer | PyroOptim | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    valid: object | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | pathlib.Path | None = None,
    resume: bool = False,
    on_nan: OnNaN = "raise",
    drop_last: bool | None = None,
    fabric: "Fabric | None" = None,
    progress: bool = True,
) -> History:
    """Train a model and its guide.

    The pair is checked on a batch first (:func:`~pyro_vaes.infer.check`), with Pyro's validation on; the steps run
    with validation off. The parameters trained are those that the programs' traces reach and that require gradients;
    they stay in their modules, and Pyro's global parameter store is left alone. Modules keep their training or
    evaluation mode.

    Arguments:
        model: A Pyro program: a method of a module, a module, or a function.
        guide: Its guide, likewise.
        data: The model's arguments: a tensor, an array or a tuple of these with rows in front; a data set from
            :func:`pyro_vaes.data.load_data`; a torch Dataset or DataLoader; an iterable of batches. Batches with more
            entries than the model takes are cut (images with labels, for a model of images).
        loss: The bound, a Pyro ELBO; ``Trace_ELBO()`` by default.
        optim: A function of the parameters that returns a torch optimiser, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``; an optimiser; or a Pyro optimiser. Adam with learning rate
            1e-3 by default.
        epochs: Passes over the data, those before a resumed checkpoint included.
        batch_size: Rows per step (over all processes).
        valid: Held-out data, evaluated after each epoch with fixed noise and without changing anything; by default
            the data set's own validation part.
        callbacks: Schedules, clipping, early stopping, see :mod:`pyro_vaes.infer.training.callbacks`.
        seed: Seeds order, preprocessing noise and sampling; the generators' states outside come back afterwards.
        device: Where to train; by default where the model's parameters are.
        checkpoint: Directory that is rewritten atomically after each epoch.
        resume: Go on from that directory if it holds a checkpoint; the result is that of an uninterrupted run. The
            optimiser's state, its learning rate included, and the seed are the checkpoint's.
        on_nan: A loss or gradient that is not finite: ``"raise"`` with a table of the sites, ``"skip"`` the step, or
            ``"rollback"`` to the epoch's start at half the learning rate.
        drop_last: Whether each epoch leaves out its last batch where that is shorter than the others (other rows each
            time, as the order is new). By default it does for bounds that compare the rows of a batch and need several
            (``min_rows``), where a shorter batch has another objective; and where it has one row, which the networks
            refuse because they normalise over the batch. Held-out data are never left out.
        fabric: A launched Lightning ``Fabric`` for several devices or machines (extra ``distributed``).
        progress: Whether to show a progress bar.

    Returns:
        The history of losses in nats per datum, which plots itself.

    Raises:
        ValueError: Bad arguments or data, or a pair that cannot be trained; before any training.
        NonFiniteError: A loss that is not finite, under ``on_nan="raise"`` or after repeated failures.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> x = torch.bernoulli(torch.full((256, 16), 0.3))
        >>> encoder = Chain(MLP(16, [8], 8), NormalHead(8, 2))
        >>> vae = VAE(encoder, MLP(2, [8], 16), BernoulliLikelihood(), latent_dim=2)
        >>> history = fit(vae.model, vae.guide, x, epochs=2, seed=0, progress=False)
        >>> len(history.train)
        2
    """
    if whole_number("epochs", epochs) < 0:
        raise ValueError(f"epochs must be at least 0, but got {epochs}.")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the directory to resume from: pass checkpoint='runs/my_run'.")
    pair, bound, callbacks = Pair(model, guide), as_bound(loss), as_callbacks(callbacks)
    weighted = [type(c).__name__ for c in callbacks if isinstance(c, KLWarmup | SoftFreeBits)]
    if weighted and any(isinstance(b, ImportanceWeighted_ELBO) for b in layers(bound)):
        raise ValueError(
            f"{weighted[0]} weighs the KL term, and the importance-weighted bound has none: it would do nothing. Use "
            "Trace_ELBO, or leave the callback out."
        )
    callbacks = (*callbacks, *(c for b in layers(bound) if isinstance(b, Bound) for c in b.callbacks()))
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    place = as_device(device) if device is not None else pair.device() or torch.device("cpu")
    seed = int(torch.randint(2**31 - 1, ())) if seed is None else seed
    if fabric is not None:
        place, seed = fabric.device, fabric.broadcast(seed)
    train_data, valid_data = train_and_valid(data, valid)
    batches = as_batches(train_data, batch_size, shuffle=True, rank=rank, world_size=world_size).to(place)
    held_out = None
    if valid_data is not None:
        try:
            held_out = as_batches(valid_data, 4 * batch_size, shuffle=False, rank=rank, world_size=world_size).to(place)
        except ValueError as error:
            raise ValueError(f"In the held-out data, valid: {error}") from error
    pair.to(place)
    batches = enough_rows(pair, batches, held_out, bound, drop_last)
    directory = None if checkpoint is None else writable(pathlib.Path(checkpoint), rank)

    with preserve_rng(seed), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", message=".*was not registered in the param store.*")
        first = first_of(pair, batches, seed, place)
        preflight(pair, bound, batches, first)
        if held_out is not None:
            preflight_held_out(pair, bound, held_out, seed, place, num_rows(first))
        pair.discover(bound, first)
        optimizer = make_optimizer(optim, list(pair.parameters.values()))
        run = Run(pair, optimizer, epochs, len(batches), held_out=held_out is not None, callbacks=tuple(callbacks))
        guard = Guard(run, on_nan, place)
        stack.callback(guard.release)
        for callback in callbacks:
            callback.start(run)
        if directory is not None and resume and is_saved(directory):
            seed = resume_run(directory, run, guard, batches)
        stack.enter_context(local_parameters())
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(quiet_elbo())
        if hasattr(bound, "differentiable_loss"):
            stack.enter_context(known_modules())
        step = Step(pair, bound, optimizer, callbacks, fabric, NumData(pair))
        _share_buffers(pair, fabric)
        total = (epochs - run.epoch) * len(batches) or None
        with tqdm(total=total, disable=not progress or rank > 0, unit="step", dynamic_ncols=True) as bar:
            while run.epoch < epochs and not run.stop:
                pyro.util.set_rng_seed(derived_seed(seed, run.epoch, rank))
                _epoch(run, step, guard, batches, held_out, seed, fabric, bar)
                with settled(run) as last:
                    for callback in callbacks:
                        callback.epoch(run)
                    run.history.stopped = run.stop
                    if directory is not None:
                        save_run(directory, run, guard, batches, seed, fabric, last)
        last = {n: t.clone() for n, t in pair.state().items()}
        settle(run)
        for callback in callbacks:
            callback.finish(run)
        if directory is not None and callbacks:
            save_run(directory, run, guard, batches, seed, fabric, last)
        if fabric is not None:
            fabric.barrier()  # nobody may look for the checkpoint before it is written
    return run.history


def _epoch(
    run: Run,
    step: Step,
    guard: Guard,
    batches: Batches,
    held_out: Batches | None,
    seed: int,
    fabric: "Fabric | None",
    bar: "tqdm[object]",
) -> None:
    """One pass over the data and the held-out evaluation; fills one row of the history."""
    started, history, place = time.perf_counter(), run.history, guard.device
    guard.start_epoch()
    bar.set_description(f"epoch {run.epoch + 1}/{run.total_epochs}")
    for batch in batches.epoch(seed, run.epoch, place):
        args = run.pair.arguments(batch)
        guard.step(args, step(run, args))
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
    if held_out is not None:
        rank = 0 if fabric is None else fabric.global_rank
        with settled(run):
            sums = total_loss(run.pair, step.loss, held_out, seed, place, rank)
        history.valid.append(_mean(torch.stack(sums), fabric))
    history.seconds.append(time.perf_counter() - started)
    shown = {"train": f"{history.train[-1]:.2f}"} | ({"valid": f"{history.valid[-1]:.2f}"} if history.valid else {})
    bar.set_postfix(shown | {"unit": "nats/datum"})


def _mean(sums: Tensor, fabric: "Fabric | None") -> float:
    """A sum divided by a number of data, both over all processes."""
    if fabric is not None:
        sums = cast(Tensor, fabric.all_reduce(sums.to(fabric.device), reduce_op="sum"))
    return (sums[0] / sums[1]).item()


def _share_buffers(pair: Pair, fabric: "Fabric | None") -> None:
    """Give every process the first one's buffers (running statistics), which no gradient keeps together."""
    if fabric is not None and fabric.world_size > 1:
        for module in pair.modules.values():
            for buffer in module.buffers():
                buffer.copy_(fabric.broadcast(buffer))
