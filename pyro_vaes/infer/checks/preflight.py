"""What is looked at before any training: a batch with extreme values, held-out data."""

import logging

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vaes.infer.batches.batches import Batches, SourceBatches
from pyro_vaes.infer.checks.check import check_pair
from pyro_vaes.programs import (
    Pair,
    UnitCounter,
    num_rows,
    preserve_rng,
    share_dry_runs,
)

__all__ = ["preflight", "preflight_held_out"]

logger = logging.getLogger(__name__)


def preflight(
    pair: Pair,
    loss: ELBO,
    batches: Batches,
    units: UnitCounter,
    seed: int,
    place: torch.device,
) -> int:
    """Check a pair before its training, find its parameters, and count the batch's rows.

    The batch that is looked at holds extreme values, where these are known beforehand.

    Raises:
        ValueError: The pair cannot be trained.
    """
    first = _first(pair, batches, seed, place)
    rows = num_rows(first)
    suspects = batches.suspects(rows) if isinstance(batches, SourceBatches) else None

    args = first if suspects is None else pair.arguments(suspects)

    with pair.aside(keep_params=True), share_dry_runs():
        report = check_pair(pair, loss, args)
        if report.ok:
            units.of(args)  # reads it off the same run
    report.raise_if_fatal()
    for problem in report.problems:
        logger.warning(problem.text)
    return rows


def preflight_held_out(
    pair: Pair,
    loss: ELBO,
    held_out: Batches,
    seed: int,
    place: torch.device,
    rows: int,
) -> None:
    """Check the pair on held-out data as well, in evaluation mode.

    A surprise there should not come after an epoch.

    Raises:
        ValueError: The pair cannot be evaluated on them.
    """
    batch = held_out.suspects(rows) if isinstance(held_out, SourceBatches) else None
    if batch is None:
        first = _first(pair, held_out, seed, place)
        batch = tuple(v[:rows] if isinstance(v, Tensor) else v for v in first)

    with pair.in_evaluation_mode(), pair.aside(keep_params=True):
        report = check_pair(pair, loss, pair.arguments(batch), trains=False)
    report.raise_if_fatal("In the held-out data: ")


def _first(pair: Pair, batches: Batches, seed: int, place: torch.device) -> tuple[object, ...]:
    """The programs' arguments in the first batch; no generator moves."""
    with preserve_rng():
        for batch in batches.epoch(seed, 0, place):
            return pair.arguments(batch)
    raise ValueError("The data has no batches. Is the loader's data set empty?")
