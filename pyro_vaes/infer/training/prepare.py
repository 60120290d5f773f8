"""Before the first step: what was asked for is read, checked, and put together."""

import pathlib

import torch

from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import Pair, Program, UnitCounter

from ..batches.batches import as_batches, train_and_valid
from ..bounds.bound import Bound
from ..bounds.facts import facts_of, layers
from ..callback import Run
from ..checks.arguments import as_bound, as_callbacks, as_device
from ..checks.last_batch import keep_or_drop_last
from ..optimizers import make_optimizer
from .checkpoint import writable
from .nonfinite import Guard
from .plan import Plan, Prepared, Training
from .preflight import preflight
from .resume import resume_run
from .step import Step


def prepare(plan: Plan, model: Program, guide: Program, data: object, valid: object | None) -> Prepared:
    """Read what was given, and refuse what can never work.

    Raises:
        ValueError: Arguments or data are of no use.
    """
    pair, bound = Pair(model, guide), as_bound(plan.loss)
    callbacks = as_callbacks(plan.callbacks)
    for callback in callbacks:
        if callback.weighs_kl and not facts_of(bound).has_kl:
            raise UsageError(
                f"{type(callback).__name__} weighs the KL term, and the bound "
                f"{type(bound).__name__} has none: it would do nothing.",
                use_bound(),
                Cure("callbacks", words="leave the callback out"),
            )
    for layer in layers(bound):
        if isinstance(layer, Bound):
            callbacks = (*callbacks, *layer.callbacks())

    # where and from which noise: all processes alike
    place = pair.device() or torch.device("cpu")
    if plan.device is not None:
        place = as_device(plan.device)
    seed = int(torch.randint(2**31 - 1, ())) if plan.seed is None else plan.seed
    if plan.fabric is not None:
        place, seed = plan.fabric.device, plan.fabric.broadcast(seed)

    train_data, valid_data = train_and_valid(data, valid)
    share = {"rank": plan.rank, "world_size": plan.world_size}
    batches = as_batches(train_data, plan.batch_size, shuffle=True, **share).to(place)
    held_out = None
    if valid_data is not None:
        rows = 4 * plan.batch_size
        try:
            held_out = as_batches(valid_data, rows, shuffle=False, **share).to(place)
        except ValueError as error:
            raise ValueError(f"In the held-out data, valid: {error}") from error

    pair.to(place)
    batches = keep_or_drop_last(pair, batches, held_out, bound, plan.drop_last)

    directory = None
    if plan.checkpoint is not None:
        directory = writable(pathlib.Path(plan.checkpoint), plan.rank)

    return Prepared(plan, pair, bound, callbacks, batches, held_out, seed, place, directory)


def start(prepared: Prepared) -> Training:
    """Check the pair on a batch, make the optimiser, and go back to a checkpoint.

    Raises:
        ValueError: The pair cannot be trained, or the checkpoint belongs to another run.
    """
    plan, pair = prepared.plan, prepared.pair

    units = UnitCounter(pair.model, pair.guide, plan.unit)
    preflight(prepared, units)

    run = Run(
        pair,
        make_optimizer(plan.optim, list(pair.parameters.values())),
        total_epochs=plan.epochs,
        steps_per_epoch=len(prepared.batches),
        held_out=prepared.held_out is not None,
        callbacks=prepared.callbacks,
    )
    guard = Guard(run, plan.on_nan, prepared.place)
    for callback in run.callbacks:
        callback.start(run)

    seed = resume_run(prepared, run, guard)
    step = Step(run, prepared.bound, plan.fabric, plan.compile, prepared.place)
    return Training(prepared, run, guard, step, units, seed)
