"""What is looked at before any training: a batch with extreme values in it, held-out data, Pyro's own validation."""

import logging
import warnings

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vaes.infer.batches.batches import Batches, SourceBatches
from pyro_vaes.infer.checks.check import check
from pyro_vaes.infer.training.nonfinite import num_rows
from pyro_vaes.programs.pair import Pair, modes, preserve_rng

__all__ = ["first_of", "preflight", "preflight_held_out"]

logger = logging.getLogger(__name__)


def first_of(pair: Pair, batches: Batches, seed: int, place: torch.device) -> tuple[object, ...]:
    """The programs' arguments in the first batch; no generator moves."""
    with preserve_rng():
        try:
            return pair.arguments(next(iter(batches.epoch(seed, 0, place))))
        except StopIteration:
            raise ValueError("The data has no batches. Is the loader's data set empty?") from None


def preflight(pair: Pair, loss: ELBO, batches: Batches, first: tuple[object, ...]) -> None:
    """Check the pair on a batch with extreme values in it, then under Pyro's validation; raise before any training."""
    suspects = batches.suspects(num_rows(first)) if isinstance(batches, SourceBatches) else None
    report = check(pair.model, pair.guide, first if suspects is None else suspects, loss=loss)
    report.raise_if_fatal()
    for problem in report.problems:
        logger.warning(problem.text)
    with pyro.validation_enabled(True), pair.aside(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*mean field restriction.*")
        loss.loss(pair.model, pair.guide, *first)


def preflight_held_out(pair: Pair, loss: ELBO, held_out: Batches, seed: int, place: torch.device, rows: int) -> None:
    """Check the pair on held-out data as well, in evaluation mode: a surprise there should not come after an epoch."""
    batch = held_out.suspects(rows) if isinstance(held_out, SourceBatches) else None
    if batch is None:
        batch = tuple(v[:rows] if isinstance(v, Tensor) else v for v in first_of(pair, held_out, seed, place))
    with modes(*pair.modules.values(), training=False):
        report = check(pair.model, pair.guide, batch, loss=loss)
    report.raise_if_fatal("In the held-out data: ")
