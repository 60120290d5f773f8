"""The bound on held-out data, without a trace left in the pair."""

import contextlib
from typing import cast

import pyro
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vaes.infer.batches.batches import Batches, as_batches, derived_seed
from pyro_vaes.infer.bounds.bound import layers
from pyro_vaes.infer.bounds.host_sync import quiet_elbo
from pyro_vaes.infer.bounds.importance import find_data_plate
from pyro_vaes.infer.checks.bound_problems import mean_field_problems
from pyro_vaes.infer.checks.check import CheckReport, check
from pyro_vaes.infer.handlers import local_parameters
from pyro_vaes.infer.training.arguments import as_bound
from pyro_vaes.infer.training.nonfinite import num_rows
from pyro_vaes.programs.pair import Pair, modes, preserve_rng
from pyro_vaes.programs.reach import Program

__all__ = ["NumData", "evaluate", "total_loss"]


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
        data: As for :func:`~pyro_vaes.infer.fit`, but one part of a data set, such as ``digits.test``.
        loss: The bound; ``Trace_ELBO()`` by default.
        batch_size: Rows per pass.
        seed: Seed of the sampling noise.

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
    mean_field = any(isinstance(b, TraceMeanField_ELBO) for b in layers(bound))
    try:
        if mean_field:  # as in fit: it would be wrong without a word
            with pair.evaluating(), pyro.validation_enabled(False):
                args = pair.arguments(next(iter(batches.epoch(seed, 0, place))))
                CheckReport("", tuple(mean_field_problems(pair, args))).raise_if_fatal()
        total, count = total_loss(pair, bound, batches, seed, place)
    except (RuntimeError, TypeError):
        with modes(*pair.modules.values(), training=False), preserve_rng():
            first = next(iter(batches.epoch(seed, 0, place)))
            check(model, guide, first, loss=bound).raise_if_fatal()  # says it in words
        raise
    return float(total / count)


def total_loss(
    pair: Pair, loss: ELBO, batches: Batches, seed: int, place: torch.device, rank: int = 0
) -> tuple[Tensor, Tensor]:
    """The loss summed over the data (this process's share of them), and their number."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    with pair.evaluating(), pyro.validation_enabled(False), quiet_elbo():
        pyro.util.set_rng_seed(derived_seed(seed, rank))
        num_data = NumData(pair)
        for batch in batches.epoch(seed, 0, place):
            args = pair.arguments(batch)
            rows = num_rows(args)
            scale = rows / num_data.of(args)
            total += scale * torch.as_tensor(loss.loss(pair.model, pair.guide, *args)).double().cpu()
            count += rows
    return total, torch.tensor(count, dtype=torch.float64)


class NumData:
    """How many data the loss of a pair's batch stands for: its rows, or what a subsampling plate scales them up to.

    The pair is looked at once for each number of rows until it subsamples; its plate stands for as many from then on.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair, self._full_size, self._seen = pair, cast(int | None, None), set[int]()

    def of(self, args: tuple[object, ...]) -> int:
        """The number for a batch's arguments."""
        rows = num_rows(args)
        if self._full_size is None and rows not in self._seen:
            self._seen.add(rows)
            with contextlib.suppress(ValueError), self._pair.aside(), local_parameters():
                self._full_size = find_data_plate(self._pair.model, self._pair.guide, args).full_size
        return rows if self._full_size is None else self._full_size
