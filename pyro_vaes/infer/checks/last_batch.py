"""Whether the bound and the networks can take the last, short batch of the data: found before any training."""

import contextlib
import warnings

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.infer.batches.batches import Batches, SourceBatches
from pyro_vaes.infer.bounds.bound import layers
from pyro_vaes.programs.pair import Pair, modes

__all__ = ["enough_rows"]

REFUSAL = "more than 1 value per channel"  # of torch, for what is normalised over one value
BATCH_NORM = (
    "the networks normalise over the batch (BatchNorm in training mode, or without running statistics), and one row of "
    "a process has no spread"
)


def enough_rows(pair: Pair, batches: Batches, held_out: Batches | None, bound: ELBO, drop_last: bool | None) -> Batches:
    """The training batches with or without a short last one, if bound and networks are defined for all that come.

    Batches that data sets and loaders make themselves are not known beforehand.

    Arguments:
        pair: Model and guide, in the modes in which they are trained.
        batches: The training batches.
        held_out: Those of held-out data, for evaluation mode.
        bound: The bound; the largest ``min_rows`` of its layers counts.
        drop_last: As for :func:`~pyro_vaes.infer.fit`.

    Raises:
        ValueError: A batch that would come has too few rows.
    """
    min_rows = max(getattr(b, "min_rows", 1) for b in layers(bound))
    if not isinstance(batches, SourceBatches):
        if drop_last:
            raise ValueError(
                "drop_last=True is for data that fit cuts into batches itself, but these come in batches of their own. "
                "Leave the short one out there: DataLoader(..., drop_last=True)."
            )
    elif drop_last or (drop_last is None and (min_rows > 1 or _is_refused(pair, batches))):
        batches = batches.whole()
    for name, part in (("training", batches), ("held-out", held_out)):
        if not isinstance(part, SourceBatches):
            continue
        rows = part.last_size
        if part is held_out:  # each process evaluates rows of its own, where there are any for it
            rows = max(rows // part.world_size, 1)
        why = f"{type(bound).__name__} compares the rows of a batch and needs at least {min_rows}"
        if rows >= min_rows:
            if not _is_refused(pair, part):
                continue
            rows, why = part.last_size, BATCH_NORM
        cures = [Cure("batch_size", words="choose another batch_size"), Cure("rows", words="leave a row out")]
        if part is held_out:
            why += " (a batch of held-out data has four times as many rows as one of training data)"
        elif drop_last is False:
            cures.append(Cure("drop_last", True, detail=", which leaves out another row in each epoch"))
        raise UsageError(f"The last batch of the {name} data has a size of {rows}, but {why}.", *cures)
    return batches


def _is_refused(pair: Pair, batches: SourceBatches) -> bool:
    """Whether torch refuses a last batch that has one row in a process: tried, as that depends on the networks.

    One row has many values per channel where there are pixels, and statistics may be frozen.
    """
    shares = {-(-batches.last_size // batches.world_size)}  # equally many in each process while training
    if not batches.shuffle:
        shares.add(batches.last_size // batches.world_size)
    if 1 not in shares:
        return False
    args = pair.arguments(batches.source.batch(slice(0, 1)))
    mode = contextlib.nullcontext() if batches.shuffle else modes(*pair.modules.values(), training=False)
    with mode, pair.aside(), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                guide_trace = poutine.trace(pair.guide).get_trace(*args)
                poutine.replay(pair.model, trace=guide_trace)(*args)
            except Exception as error:  # of any other kind: the check of the pair has words for it
                return REFUSAL in str(error)
    return False
