"""A dry run of a model/guide pair on one batch: the trace table, and what is wrong, in words."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyro
from pyro.infer import ELBO

from pyro_vaes.errors import UsageError
from pyro_vaes.programs import (
    Pair,
    Program,
    dry_run,
    dry_run_pair,
    preserve_rng,
    share_dry_runs,
)

from ..batches.batches import first_batch
from ..bounds.facts import facts_of
from .arguments import as_bound
from .bound_problems import (
    density_problems,
    enumeration_problems,
    loss_problems,
    mean_field_problems,
)
from .problems import (
    Problem,
    data_problems,
    empty_problems,
    failure,
    plate_problems,
    scale_problems,
    site_problems,
    support_problems,
)
from .program_record import ProgramRecord, record
from .shape_problems import shape_problems
from .silent_problems import (
    global_problems,
    mask_problems,
    observing_problems,
    scale_problems_without_kl,
)
from .tables import Args, trace_table


@dataclass(frozen=True)
class CheckReport:
    """What a dry run found.

    Attributes:
        table: The sites of guide and model with their shapes.
        problems: What is wrong, most serious first; empty when all is well.
    """

    table: str
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(p.fatal for p in self.problems)

    def raise_if_fatal(self, before: str = "") -> None:
        """Raise a ValueError with the fatal problems and their cures, if there are any.

        Arguments:
            before: What to say first.
        """
        fatal = [problem for problem in self.problems if problem.fatal]
        if fatal:
            text = " ".join(problem.message for problem in fatal)
            cures = dict.fromkeys(cure for problem in fatal for cure in problem.cures)
            raise UsageError(before + text, *cures)

    def __str__(self) -> str:
        lines = [f"{'error' if p.fatal else 'note'}: {p.text}" for p in self.problems] or ["no problems found"]
        return "\n".join([self.table, *lines])

    __repr__ = __str__


def check(model: Program, guide: Program, batch: object, *, loss: ELBO | None = None) -> CheckReport:
    """Run a pair once on a batch, aside, and say what is wrong with it.

    Looks at: the data (NaN, dtype, emptiness), errors of either program, sites that only
    one of them has, batch dimensions that no plate declares, values outside a support,
    scales and masks on one side only, global latents beside a plate that stands for its
    batch alone, observations of the guide, the mean-field condition of
    :class:`~pyro.infer.TraceMeanField_ELBO`, values that are not finite, and parameters
    that no gradient reaches. Data that the programs handle by themselves (NaN, bytes, grey
    pixels under ``validate_args=False``) are no problem: the loss under Pyro's validation
    decides.

    Arguments:
        model: The model.
        guide: The guide.
        batch: A tensor or a tuple of tensors, the programs' arguments; of all else that ``fit`` takes for data, its
            first batch.
        loss: The bound that will be used; ``Trace_ELBO()`` by default.

    Returns:
        A report that prints itself; ``report.ok`` says whether the pair can be trained.

    Raises:
        ValueError: What is given for a batch or a loss is none.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 2]), obs=x)
        >>> report = check(model, lambda x: None, torch.zeros(5, 2))
        >>> report.ok
        False
    """
    pair, bound = Pair(model, guide), as_bound(loss)
    with preserve_rng():
        args = pair.arguments(first_batch(batch, pair.device() or "cpu"))
    with pair.aside(), share_dry_runs():
        return check_pair(pair, bound, args)


def check_pair(
    pair: Pair,
    bound: ELBO,
    args: Args,
    *,
    trains: bool = True,
    is_all: bool = False,
) -> CheckReport:
    """The same for a pair that is run aside already; its parameters are found on the way.

    Both programs are run once, and the loss is computed once, if the caller shares dry
    runs. What Pyro's default validation lets pass is refused only where the result would
    be wrong: the loss decides, and what is known of data and shapes explains.

    Arguments:
        pair: Model and guide.
        bound: The bound.
        args: The programs' arguments for one batch.
        trains: Whether the loss is to be differentiated.
        is_all: Whether this batch holds all data.
    """
    empty = tuple(empty_problems(args))
    if empty:
        return CheckReport("", empty)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _check(pair, bound, args, trains=trains, is_all=is_all)


def _check(
    pair: Pair,
    bound: ELBO,
    args: Args,
    *,
    trains: bool,
    is_all: bool,
) -> CheckReport:
    suspects = list(data_problems(args))
    with pyro.validation_enabled(False):
        try:
            traces = dry_run_pair(pair.model, pair.guide, args)
        except Exception as error:
            failed = _report_failure(pair, args, error)
            of_loss = loss_problems(pair, bound, args, trains=trains)
            return _decide(failed, suspects, of_loss)

        guide = record("guide", traces.guide)
        model = record("model", traces.model)
        problems = _problems(pair, bound, args, guide, model)
        if not is_all:
            problems += global_problems(model)
        suspects = suspects or list(support_problems(pair, model))

    if not any(p.fatal for p in problems):
        found = list(loss_problems(pair, bound, args, trains=trains))
        if suspects and any(p.fatal for p in found):
            found = suspects
        problems += found

    problems.sort(key=lambda problem: not problem.fatal)
    return CheckReport(trace_table(guide, model), tuple(problems))


def _decide(
    failed: CheckReport,
    suspects: list[Problem],
    of_loss: Iterator[Problem],
) -> CheckReport:
    """The report on programs that fail by themselves.

    A bound may run them in another way, as where it enumerates: then its loss counts.
    """
    found = tuple(of_loss)
    if any(problem.fatal for problem in found):
        found = tuple(suspects) or failed.problems
    return replace(failed, problems=found)


def _problems(pair: Pair, bound: ELBO, args: Args, guide: ProgramRecord, model: ProgramRecord) -> list[Problem]:
    """What a dry run of each program shows."""
    facts = facts_of(bound)
    problems = [*site_problems(guide, model)]
    if not facts.enumerates:
        problems += enumeration_problems(guide, model, bound)

    nesting = getattr(bound, "max_plate_nesting", math.inf)
    problems += shape_problems(guide, nesting)
    problems += shape_problems(model, nesting)
    problems += plate_problems(guide, model, args)
    problems += scale_problems(guide, model)

    problems += mask_problems(guide, model)
    problems += observing_problems(guide)
    if not facts.has_kl:
        problems += scale_problems_without_kl(model, bound)

    if facts.analytic_kl and not any(p.fatal for p in problems):
        problems += mean_field_problems(pair, args)
        problems += density_problems(guide)
    return problems


def _report_failure(pair: Pair, args: Args, error: Exception) -> CheckReport:
    """Which of the programs fails, and why."""
    try:
        guide = record("guide", dry_run(pair.guide, args))
    except Exception as failed:
        return CheckReport("", (failure(pair, "guide", args, failed),))
    return CheckReport(trace_table(guide), (failure(pair, "model", args, error),))
