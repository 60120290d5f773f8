"""The bound on held-out data, without a trace left in the pair."""

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vaes.programs import (
    KeepGlobals,
    Pair,
    Program,
    UnitCounter,
    preserve_rng,
)

from ..batches.batches import Batches, as_batches, derived_seed
from ..bounds.facts import facts_of
from ..bounds.host_sync import without_host_sync
from ..checks.arguments import as_bound
from ..checks.bound_problems import mean_field_problems
from ..checks.check import CheckReport, check


def evaluate(
    model: Program,
    guide: Program,
    data: object,
    *,
    loss: ELBO | None = None,
    batch_size: int = 512,
    seed: int = 0,
    unit: str | None = None,
) -> float:
    """The loss (negative bound) in nats per datum, with fixed noise; no parameter, buffer, mode or generator changes.

    A datum is a unit: a row of the outermost plate that all observed sites share.
    Latents outside that plate are global; they are drawn once for the pass over the data,
    and their KL divergence counts once for all data that the plate stands for.

    Arguments:
        model: The model.
        guide: The guide.
        data: As for :func:`~pyro_vaes.infer.fit`, but one part of a data set, such as ``digits.test``.
        loss: The bound; ``Trace_ELBO()`` by default.
        batch_size: Rows per pass.
        seed: Seed of the sampling noise.
        unit: Name of the plate whose rows are the data, where there are several;
            without it two plates that cross (users × items) count as one unit.

    Raises:
        ValueError: Bad arguments, programs that fail on the data, or TraceMeanField_ELBO for a pair for which it is
            wrong; see :func:`~pyro_vaes.infer.check`.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> evaluate(vae.model, vae.guide, torch.zeros(10, 3)) == evaluate(vae.model, vae.guide, torch.zeros(10, 3))
        True
    """
    pair, bound = Pair(model, guide), as_bound(loss)
    place = pair.device() or torch.device("cpu")
    batches = as_batches(data, batch_size, shuffle=False).to(place)

    def first() -> tuple[object, ...]:
        return pair.arguments(next(iter(batches.epoch(seed, 0, place))))

    try:
        if facts_of(bound).analytic_kl:  # as in fit: it would be wrong without a word
            with pair.evaluating():
                problems = tuple(mean_field_problems(pair, first()))
            CheckReport("", problems).raise_if_fatal()
        units = UnitCounter(model, guide, unit)
        total, count = total_loss(pair, bound, batches, units, seed, place)
    except (RuntimeError, TypeError):
        with pair.in_evaluation_mode(), preserve_rng():
            check(model, guide, first(), loss=bound).raise_if_fatal()  # says it in words
        raise
    return float(total / count)


def total_loss(
    pair: Pair,
    loss: ELBO,
    batches: Batches,
    counter: UnitCounter,
    seed: int,
    place: torch.device,
    rank: int = 0,
) -> Tensor:
    """The loss summed over the data (this process's share of them), and their number."""
    sums = torch.zeros(2, dtype=torch.float64)
    keep = KeepGlobals()

    with pair.evaluating(), without_host_sync():
        pyro.util.set_rng_seed(derived_seed(seed, rank))
        for batch in batches.epoch(seed, 0, place):
            args = pair.arguments(batch)
            units = counter.of(args)
            with keep.of(units):
                value = loss.loss(pair.model, pair.guide, *args)

            # of all data that the loss stands for, these rows' share
            whole = torch.as_tensor(value, dtype=torch.float64, device="cpu")
            sums[0] += units.size / units.num_data * whole
            sums[1] += units.size

    return sums
