"""The training loop: any pair, any bound, any data.

Each step minimises the loss of the bound per datum,

    loss / B,    loss = -bound summed over the batch's B data,

so that learning rates and clipping do not depend on the batch size. Everything is reported in nats per datum.
"""

import contextlib
import logging
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_vaes.infer.batches import Batches, SourceBatches, as_batches, train_and_valid
from pyro_vaes.infer.callbacks import Callback, Run
from pyro_vaes.infer.check import check
from pyro_vaes.infer.checkpoint import random_state, read_checkpoint, set_random_state, write_checkpoint
from pyro_vaes.infer.handlers import local_parameters
from pyro_vaes.infer.history import History
from pyro_vaes.infer.importance import find_data_plate
from pyro_vaes.infer.nonfinite import Guard, OnNaN
from pyro_vaes.infer.pair import Pair, preserve_rng
from pyro_vaes.infer.quiet import quiet_elbo

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["evaluate", "fit"]

logger = logging.getLogger(__name__)
Program = Callable[..., object]
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


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
    fabric: "Fabric | None" = None,
    progress: bool = True,
) -> History:
    """Train a model and its guide.

    The pair is checked on a batch first (:func:`~pyro_vaes.infer.check`), with Pyro's validation on; the steps run
    with validation off. The parameters trained are those that the programs' traces reach and that require gradients;
    they stay in their modules, and Pyro's global parameter store is left alone.

    Arguments:
        model: A Pyro program: a method of a module, a module, or a function.
        guide: Its guide, likewise.
        data: The model's arguments: a tensor, an array or a tuple of these with rows in front; a data set from
            :func:`pyro_vaes.data.load`; a torch Dataset or DataLoader; an iterable of batches. Batches with more
            entries than the model takes are cut (images with labels, for a model of images).
        loss: The bound, a Pyro ELBO; ``Trace_ELBO()`` by default.
        optim: A function of the parameters that returns a torch optimiser, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``; an optimiser; or a Pyro optimiser. Adam with learning rate
            1e-3 by default.
        epochs: Passes over the data, those before a resumed checkpoint included.
        batch_size: Rows per step (over all processes).
        valid: Held-out data, evaluated after each epoch with fixed noise and without changing anything; by default
            the data set's own validation part.
        callbacks: Schedules, clipping, early stopping, see :mod:`pyro_vaes.infer.callbacks`.
        seed: Seeds order, preprocessing noise and sampling; the generators' states outside come back afterwards.
        device: Where to train; by default where the model's parameters are.
        checkpoint: Directory that is rewritten atomically after each epoch.
        resume: Go on from that directory if it holds a checkpoint; the result is that of an uninterrupted run.
        on_nan: A loss or gradient that is not finite: ``"raise"`` with a table of the sites, ``"skip"`` the step, or
            ``"rollback"`` to the epoch's start at half the learning rate.
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
    if epochs < 0:
        raise ValueError(f"epochs must be at least 0, but got {epochs}.")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the directory to resume from: pass checkpoint='runs/my_run'.")
    pair, bound = Pair(model, guide), Trace_ELBO() if loss is None else loss
    train_data, valid_data = train_and_valid(data, valid)
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    place = torch.device(device) if device is not None else pair.device() or torch.device("cpu")
    if fabric is not None:
        place = fabric.device
    pair.to(place)
    batches = as_batches(train_data, batch_size, shuffle=True, rank=rank, world_size=world_size).to(place)
    held_out = None
    if valid_data is not None:
        held_out = as_batches(valid_data, 4 * batch_size, shuffle=False, rank=rank, world_size=world_size).to(place)
    directory = None if checkpoint is None else _writable(pathlib.Path(checkpoint))

    seed = int(torch.randint(2**31 - 1, ())) if seed is None else seed
    with preserve_rng(seed), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", message=".*was not registered in the param store.*")
        first = _first_batch(pair, batches, seed, place)
        _preflight(pair, bound, batches, first)
        pair.discover(bound, first)
        optimizer = _optimizer(optim, list(pair.parameters.values()))
        run = Run(pair, optimizer, total_epochs=epochs, steps_per_epoch=len(batches))
        for callback in callbacks:
            callback.start(run)
        if directory is not None and resume and (directory.exists() or directory.with_name(f".{directory.name}.old").exists()):
            seed = _resume(directory, run, callbacks, rank)
        stack.enter_context(local_parameters())
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(quiet_elbo())
        step = _Step(pair, bound, optimizer, callbacks, fabric, first)
        guard = Guard(run, on_nan, place)
        if fabric is not None:  # ranks share their parameters but draw noise of their own
            pyro.util.set_rng_seed(seed + 1000003 * rank + 7919 * run.epoch)
        total = (epochs - run.epoch) * len(batches) or None
        with tqdm(total=total, disable=not progress or rank > 0, unit="step", dynamic_ncols=True) as bar:
            while run.epoch < epochs and not run.stop:
                _epoch(run, step, guard, batches, held_out, seed, place, fabric, bar)
                for callback in callbacks:
                    callback.epoch(run)
                if directory is not None:
                    _save(directory, run, callbacks, seed, fabric)
        for callback in callbacks:
            callback.finish(run)
        if directory is not None and callbacks and rank == 0:
            _save(directory, run, callbacks, seed, fabric)
    run.history.stopped = run.stop
    return run.history


def evaluate(
    model: Program,
    guide: Program,
    data: object,
    *,
    loss: ELBO | None = None,
    batch_size: int = 512,
    seed: int = 0,
) -> float:
    """The loss (negative bound) in nats per datum, with fixed noise; no parameter, buffer, mode or generator changes.

    Arguments:
        model: The model.
        guide: The guide.
        data: As for :func:`fit`.
        loss: The bound; ``Trace_ELBO()`` by default.
        batch_size: Rows per pass.
        seed: Seed of the sampling noise.
    """
    pair, bound = Pair(model, guide), Trace_ELBO() if loss is None else loss
    place = pair.device() or torch.device("cpu")
    batches = as_batches(data, batch_size, shuffle=False).to(place)
    total, count = _evaluate(pair, bound, batches, seed, place)
    return float(total / count)


def _evaluate(pair: Pair, loss: ELBO, batches: Batches, seed: int, place: torch.device) -> tuple[Tensor, Tensor]:
    """Total loss and number of data."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    buffers = {b: b.clone() for m in pair.modules.values() for b in m.buffers()}
    with pair.evaluating(), pyro.validation_enabled(False), quiet_elbo():
        pyro.util.set_rng_seed(seed)
        full_size = None
        for index, batch in enumerate(batches.epoch(seed, 0, place)):
            args = pair.arguments(batch)
            if index == 0:
                full_size = _full_size(pair, args)
            rows = _rows(args)
            scale = 1.0 if full_size is None else rows / full_size
            total += scale * torch.as_tensor(loss.loss(pair.model, pair.guide, *args)).double().cpu()
            count += rows
        for buffer, before in buffers.items():
            buffer.copy_(before)
    return total, torch.tensor(count, dtype=torch.float64)


class _Step:
    """One step: loss per datum, backward, callbacks' gradients; the optimiser is the guard's."""

    def __init__(
        self,
        pair: Pair,
        loss: ELBO,
        optimizer: Optimizer,
        callbacks: Sequence[Callback],
        fabric: "Fabric | None",
        first: tuple[object, ...],
    ) -> None:
        self.pair, self.loss, self.optimizer, self.callbacks, self.fabric = pair, loss, optimizer, callbacks, fabric
        self.parameters = list(pair.parameters.values())
        self.full_size = _full_size(pair, first)
        self.module: nn.Module | None = None
        if fabric is not None:
            self.module, self.optimizer = fabric.setup(_LossModule(pair, loss), optimizer)

    def __call__(self, run: Run, args: tuple[object, ...]) -> tuple[Tensor, int]:
        """The loss per datum, detached, and the number of rows; gradients are in place afterwards."""
        rows = _rows(args)
        self.optimizer.zero_grad(set_to_none=True)
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                handler = callback.handler(run)
                if handler is not None:
                    stack.enter_context(handler)
            value = self._backward(args, self.full_size or rows)
        for callback in self.callbacks:
            callback.gradients(run, self.parameters)
        return value, rows

    def _backward(self, args: tuple[object, ...], num_data: int) -> Tensor:
        pair = self.pair
        if self.module is not None:
            assert self.fabric is not None
            value = self.module(*args) / num_data
            self.fabric.backward(value)
            return value.detach()
        if hasattr(self.loss, "differentiable_loss"):
            value = self.loss.differentiable_loss(pair.model, pair.guide, *args) / num_data
            value.backward()
            return value.detach()
        value = torch.as_tensor(self.loss.loss_and_grads(pair.model, pair.guide, *args)) / num_data
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= num_data
        return value.detach()


class _LossModule(nn.Module):
    """The loss as a module that holds the trained parameters, as Fabric's strategies want it."""

    def __init__(self, pair: Pair, loss: ELBO) -> None:
        super().__init__()
        reached = {n: p for n, p in pair.parameters.items() if n not in pair.unreached}
        foreign = [n for n, p in reached.items() if not isinstance(p, nn.Parameter)]
        if foreign:
            raise ValueError(
                f"Several processes need parameters that are nn.Parameters of modules, but {foreign[:3]} are pyro.param "
                "statements. Make the program a PyroModule with PyroParam attributes."
            )
        self.parts = nn.ParameterList(cast(list[nn.Parameter], list(reached.values())))
        self.pair, self.loss = pair, loss

    def forward(self, *args: object) -> Tensor:
        return self.loss.differentiable_loss(self.pair.model, self.pair.guide, *args)


def _epoch(
    run: Run,
    step: _Step,
    guard: Guard,
    batches: Batches,
    held_out: Batches | None,
    seed: int,
    place: torch.device,
    fabric: "Fabric | None",
    bar: "tqdm[object]",
) -> None:
    """One pass over the data and the held-out evaluation; fills one row of the history."""
    started, history = time.perf_counter(), run.history
    guard.start_epoch()
    bar.set_description(f"epoch {run.epoch + 1}/{run.total_epochs}")
    for batch in batches.epoch(seed, run.epoch, place):
        args = run.pair.arguments(batch)
        value, rows = step(run, args)
        guard.step(args, value, rows)
        run.step += 1
        for callback in step.callbacks:
            callback.stepped(run)
        bar.update()
    train, norm = guard.finish_epoch()
    sums = torch.tensor([train[0], train[1]], dtype=torch.float64)
    if fabric is not None:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    run.epoch += 1
    history.epochs.append(run.epoch)
    history.train.append((sums[0] / sums[1]).item())
    history.grad_norm.append(norm)
    history.learning_rate.append(float(run.optimizer.param_groups[0]["lr"]))
    if held_out is not None:
        total, count = _evaluate(run.pair, step.loss, held_out, seed, place)
        if fabric is not None:
            total, count = (fabric.all_reduce(v.to(fabric.device), reduce_op="sum").cpu() for v in (total, count))
        history.valid.append((total / count).item())
    history.seconds.append(time.perf_counter() - started)
    shown = {"train": f"{history.train[-1]:.2f}"} | ({"valid": f"{history.valid[-1]:.2f}"} if history.valid else {})
    bar.set_postfix(shown | {"unit": "nats/datum"})


def _rows(args: tuple[object, ...]) -> int:
    return next((len(a) for a in args if isinstance(a, Tensor) and a.dim()), 1)


def _full_size(pair: Pair, args: tuple[object, ...]) -> int | None:
    """The number of data that a subsampling plate stands for, whose losses are scaled up to the full data."""
    try:
        with local_parameters():
            return find_data_plate(pair.model, pair.guide, args).full_size
    except ValueError:
        return None


def _first_batch(pair: Pair, batches: Batches, seed: int, place: torch.device) -> tuple[object, ...]:
    with preserve_rng():
        try:
            return pair.arguments(next(iter(batches.epoch(seed, 0, place))))
        except StopIteration:
            raise ValueError("The data has no batches. Is the loader's data set empty?") from None


def _preflight(pair: Pair, loss: ELBO, batches: Batches, first: tuple[object, ...]) -> None:
    """Check the pair on the first batch and on rows with extreme values; raise before any training."""
    report = check(pair.model, pair.guide, first, loss=loss)
    report.raise_if_fatal()
    for problem in report.problems:
        logger.warning(problem.text)
    suspects = getattr(batches.source, "suspects", None) if isinstance(batches, SourceBatches) else None
    if suspects is not None:
        rows = suspects().to(next((a.device for a in first if isinstance(a, Tensor)), "cpu"))
        check(pair.model, pair.guide, batches.source.batch(rows), loss=loss).raise_if_fatal()  # type: ignore[union-attr]
    with pyro.validation_enabled(True), local_parameters(), preserve_rng(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*mean field restriction.*")
        loss.loss(pair.model, pair.guide, *first)


def _optimizer(optim: MakeOptimizer | Optimizer | PyroOptim | None, parameters: list[Tensor]) -> Optimizer:
    if optim is None:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.Adam(parameters, lr=1e-3, fused=fused)
    if isinstance(optim, PyroOptim):
        if callable(optim.pt_optim_args):
            raise ValueError("Pyro optimisers with per-parameter arguments are for SVI; pass a function of the parameters.")
        return optim.pt_optim_constructor(parameters, **optim.pt_optim_args)
    if isinstance(optim, Optimizer):
        held = {id(p) for group in optim.param_groups for p in group["params"]}
        missing = sum(id(p) not in held for p in parameters)
        if missing:
            raise ValueError(
                f"The optimiser lacks {missing} of the {len(parameters)} parameters of this model and guide. Pass a function "
                "of the parameters instead: functools.partial(torch.optim.Adam, lr=1e-3)."
            )
        return optim
    if not callable(optim):
        raise ValueError(
            f"optim is a {type(optim).__name__}; a function of the parameters, a torch optimiser or a Pyro optimiser is wanted."
        )
    return optim(parameters)


def _writable(directory: pathlib.Path) -> pathlib.Path:
    """Make sure, before any training, that checkpoints can be written."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        probe = directory.with_name(f".{directory.name}.probe")
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"Checkpoints cannot be written to {directory}: {error}. Choose a directory you may write to.") from error
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"checkpoint={directory} is a file; a directory is wanted.")
    return directory


def _save(
    directory: pathlib.Path, run: Run, callbacks: Sequence[Callback], seed: int, fabric: "Fabric | None"
) -> None:
    if fabric is not None and fabric.global_rank > 0:
        return
    training = {
        "optimizer": run.optimizer.state_dict(),
        "callbacks": [c.state_dict() for c in callbacks],
        "random": random_state(),
        "parameters": list(run.pair.parameters),
    }
    facts = {"epoch": run.epoch, "step": run.step, "seed": seed, "stop": run.stop, "history": run.history.to_dict()}
    write_checkpoint(directory, run.pair.state(), facts, training)


def _resume(directory: pathlib.Path, run: Run, callbacks: Sequence[Callback], rank: int) -> int:
    """Put a run back where its checkpoint left it; returns the run's seed."""
    state, facts, training = read_checkpoint(directory)
    if training is None:
        raise ValueError(
            f"{directory} holds weights but no training state, so training cannot resume from it. Load the weights with "
            "load(directory, model, guide) and start a new run."
        )
    if training["parameters"] != list(run.pair.parameters):
        raise ValueError(f"The checkpoint in {directory} was trained with other parameters than this pair has.")
    saved = cast(list[dict[str, object]], training["callbacks"])
    if len(saved) != len(callbacks):
        raise ValueError(
            f"The checkpoint in {directory} was written with {len(saved)} callbacks, but now there are {len(callbacks)}; resume "
            "with the same ones."
        )
    run.pair.load_state(state)
    run.optimizer.load_state_dict(cast(dict[str, object], training["optimizer"]))
    for callback, callback_state in zip(callbacks, saved, strict=True):
        callback.load_state_dict(callback_state)
    set_random_state(cast(dict[str, object], training["random"]))
    history = cast(dict[str, object], facts["history"])
    run.history.__dict__.update(history)
    run.epoch, run.step = int(str(facts["epoch"])), int(str(facts["step"]))
    run.stop = str(facts["stop"])
    if not math.isfinite(sum(run.history.train)):
        logger.warning("The checkpoint's history holds losses that are not finite.")
    return int(str(facts["seed"]))
