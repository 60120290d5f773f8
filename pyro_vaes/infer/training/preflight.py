"""What is looked at before any training: a batch with extreme values, held-out data."""

import logging

from torch import Tensor

from pyro_vaes.programs import UnitCounter, num_rows, preserve_rng, share_dry_runs

from ..batches.batches import Batches, SourceBatches
from ..checks.check import check_pair
from ..checks.tables import Args
from .plan import Prepared

logger = logging.getLogger(__name__)


def preflight(prepared: Prepared, units: UnitCounter) -> None:
    """Check a pair before its training, find its parameters, and count a batch's rows.

    Held-out data are looked at as well, in evaluation mode: a surprise there should not
    come after an epoch.

    Raises:
        ValueError: The pair cannot be trained, or not be evaluated on the held-out data.
    """
    pair, bound, held_out = prepared.pair, prepared.bound, prepared.held_out

    args = _args_to_check(prepared, prepared.batches)
    with pair.aside(keep_params=True), share_dry_runs():
        report = check_pair(pair, bound, args, is_all=len(prepared.batches) == 1)
        report.raise_if_fatal()
        units.of(args)  # reads it off the same run
    for problem in report.problems:
        logger.warning(problem.text)

    if held_out is not None:
        args = _args_to_check(prepared, held_out, num_rows(args))
        aside = pair.aside(keep_params=True)
        with pair.in_evaluation_mode(), aside, share_dry_runs():
            report = check_pair(pair, bound, args, trains=False)
        report.raise_if_fatal("In the held-out data: ")


def _args_to_check(prepared: Prepared, batches: Batches, rows: int | None = None) -> Args:
    """The programs' arguments for one batch; no generator moves.

    The batch holds extreme values, where these are known beforehand; it is the first one
    otherwise.

    Arguments:
        prepared: The run.
        batches: The batches of its data, or of the held-out ones.
        rows: How many rows to take; those of a whole batch by default.
    """
    pair = prepared.pair
    if isinstance(batches, SourceBatches):
        of_all = min(batches.batch_size, batches.num_data)
        suspects = batches.suspects(rows or -(-of_all // batches.world_size))
        if suspects is not None:
            return pair.arguments(suspects)

    with preserve_rng():
        for batch in batches.epoch(prepared.seed, 0, prepared.place):
            args = []
            for value in pair.arguments(batch):
                args.append(value[:rows] if isinstance(value, Tensor) else value)
            return tuple(args)
    raise ValueError("The data has no batches. Is the loader's data set empty?")
