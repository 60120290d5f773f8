"""Whether bound and networks can take the last, short batch of the data.

That is found out before any training.
"""

import warnings

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.programs import Pair, modes, run_pair

from ..batches.batches import Batches, SourceBatches
from ..bounds.facts import facts_of

REFUSAL = "more than 1 value per channel"  # of torch, for what is normalised over one value
BATCH_NORM = (
    "the networks normalise over the batch (BatchNorm in training mode, or without running statistics), and one row of "
    "a process has no spread"
)
ANOTHER_SIZE = Cure("batch_size", words="choose another batch_size")
LEAVE_OUT = Cure("rows", words="leave a row out")


def keep_or_drop_last(
    pair: Pair,
    batches: Batches,
    held_out: Batches | None,
    bound: ELBO,
    drop_last: bool | None,
) -> Batches:
    """The training batches with or without a short last one.

    Batches that data sets and loaders make themselves are not known beforehand.

    Arguments:
        pair: Model and guide, in the modes in which they are trained.
        batches: The training batches.
        held_out: Those of held-out data, for evaluation mode.
        bound: The bound.
        drop_last: As for :func:`~pyro_vaes.infer.fit`.

    Raises:
        ValueError: A batch that would come has too few rows for the bound or the networks.
    """
    min_rows = facts_of(bound).min_rows

    if not isinstance(batches, SourceBatches):
        if drop_last:
            raise ValueError(
                "drop_last=True is for data that fit cuts into batches itself, but these come "
                "in batches of their own. Leave the short one out there: DataLoader(..., "
                "drop_last=True)."
            )
    elif drop_last or (drop_last is None and (min_rows > 1 or _is_refused(pair, batches, batches.last_size))):
        batches = batches.whole()

    if isinstance(batches, SourceBatches):
        too_few = _too_few(pair, batches, bound, min_rows)
        cures = [ANOTHER_SIZE, LEAVE_OUT]
        if drop_last is False:
            detail = ", which leaves out another row in each epoch"
            cures.append(Cure("drop_last", True, detail=detail))
        if too_few:
            message = f"The last batch of the training data has {too_few}."
            raise UsageError(message, *cures)

    if isinstance(held_out, SourceBatches):
        too_few = _too_few(pair, held_out, bound, min_rows)
        if too_few:
            raise UsageError(
                f"The last batch of the held-out data has {too_few} (a batch of held-out data "
                "has four times as many rows as one of training data).",
                ANOTHER_SIZE,
                LEAVE_OUT,
            )

    return batches


def _too_few(pair: Pair, batches: SourceBatches, bound: ELBO, min_rows: int) -> str | None:
    """Why the last batch cannot be taken, if it cannot."""
    last = rows = batches.last_size
    if not batches.shuffle:
        # each process evaluates rows of its own, where there are any for it
        rows = max(last // batches.world_size, 1)

    if rows < min_rows:
        return (
            f"a size of {rows}, but {type(bound).__name__} compares the rows of a batch and needs at least {min_rows}"
        )
    if _is_refused(pair, batches, last):
        return f"a size of {last}, but {BATCH_NORM}"
    return None


def _is_refused(pair: Pair, batches: SourceBatches, last: int) -> bool:
    """Whether torch refuses a last batch that has one row in a process.

    It is tried, as that depends on the networks: one row has many values per channel where
    there are pixels, and statistics may be frozen.
    """
    # while training, equally many in each process
    shares = {-(-last // batches.world_size)}
    if not batches.shuffle:
        shares.add(last // batches.world_size)
    if 1 not in shares:
        return False

    args = pair.arguments(batches.source.batch(slice(0, 1)))
    evaluated = () if batches.shuffle else pair.modules.values()
    with (
        modes(*evaluated, training=False),
        pair.aside(),
        torch.no_grad(),
        pyro.validation_enabled(False),
        poutine.block(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            run_pair(pair.model, pair.guide, args)
        except Exception as error:  # the check of the pair has words for any other kind
            return REFUSAL in str(error)
    return False
