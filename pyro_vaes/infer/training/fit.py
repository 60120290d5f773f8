"""The training loop: any pair, any bound, any data.

Each step minimises the loss of the bound per datum,

    loss / B,    loss = -bound summed over the batch's B data,

so that learning rates and clipping do not depend on the batch size. Everything is reported in nats per datum.
"""

import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pyro.infer import ELBO

from pyro_vaes.programs import Program, preserve_rng

from ..callback import Callback
from ..engines import Compile
from ..history import History
from ..optimizers import OptimizerLike
from .loop import run_epochs
from .nonfinite import OnNaN
from .plan import Plan
from .prepare import prepare, start

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    model: Program,
    guide: Program,
    data: object,
    *,
    loss: ELBO | None = None,
    optim: OptimizerLike | None = None,
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
    compile: Compile = "auto",
    progress: bool = True,
    unit: str | None = None,
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
        compile: How steps are run. False: as Pyro runs them. ``"capture"``: losses and gradients are recorded as graphs
            of torch's operations, which give the same numbers without Pyro's work in Python. True: the graphs are
            compiled, which takes a C++ compiler on the CPU and up to a minute once; numbers are the same up to
            rounding. ``"auto"`` does what the number of steps is likely to earn back. The history says which engine
            ran, and why it was no quicker one. A step that cannot be recorded is taken as Pyro takes it.
        progress: Whether to show a progress bar.
        unit: Name of the plate whose rows are the data, where there are several; by
            default the outermost one that all observed sites share. Without it two plates
            that cross (users × items) count as one unit, which is logged.

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
    plan = Plan(
        # what is trained, and on what
        loss=loss,
        optim=optim,
        epochs=epochs,
        batch_size=batch_size,
        callbacks=callbacks,
        seed=seed,
        # how it runs
        device=device,
        checkpoint=checkpoint,
        resume=resume,
        on_nan=on_nan,
        drop_last=drop_last,
        fabric=fabric,
        compile=compile,
        unit=unit,
    )

    prepared = prepare(plan, model, guide, data, valid)

    with preserve_rng(prepared.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not registered in the param store.*")
        training = start(prepared)
        try:
            return run_epochs(training, progress=progress)
        finally:
            training.guard.release()
