"""A dry run of a model/guide pair on one batch: the trace table, and what is wrong, in words."""

import warnings
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceMeanField_ELBO

from pyro_vaes.errors import UsageError
from pyro_vaes.infer.batches.batches import first_batch
from pyro_vaes.infer.bounds.bound import layers
from pyro_vaes.infer.checks.bound_problems import (
    density_problems,
    enumeration_problems,
    gradient_problems,
    mean_field_problems,
)
from pyro_vaes.infer.checks.problems import (
    Problem,
    data_problems,
    failure,
    plate_problems,
    scale_problems,
    shape_problems,
    site_problems,
    support_problems,
)
from pyro_vaes.infer.checks.tables import trace_table
from pyro_vaes.infer.training.arguments import as_bound
from pyro_vaes.programs.pair import Pair, preserve_rng
from pyro_vaes.programs.reach import Program

__all__ = ["CheckReport", "check"]


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
        """Raise a ValueError that holds the fatal problems, if there are any, and their cures."""
        if self.ok:
            return
        fatal = [p for p in self.problems if p.fatal]
        cures = dict.fromkeys(cure for p in fatal for cure in p.cures)
        raise UsageError(before + " ".join(p.message for p in fatal), *cures)

    def __str__(self) -> str:
        lines = [f"{'error' if p.fatal else 'note'}: {p.text}" for p in self.problems] or ["no problems found"]
        return "\n".join([self.table, *lines])

    __repr__ = __str__


def check(model: Program, guide: Program, batch: object, *, loss: ELBO | None = None) -> CheckReport:
    """Run a pair once on a batch, aside, and say what is wrong with it.

    Looks at: the data (NaN, dtype, emptiness), errors of either program, sites that only one of them has, batch
    dimensions that no plate declares, values outside a support, scales on one side only, the mean-field condition of
    :class:`~pyro.infer.TraceMeanField_ELBO`, values that are not finite, and parameters that no gradient reaches.

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
    problems = list(data_problems(args))
    if problems:
        return CheckReport("", tuple(problems))
    with pair.aside(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), poutine.block():
                guide_trace = poutine.trace(guide).get_trace(*args)
        except Exception as error:
            return CheckReport("", (failure(pair, "guide", args, error),))
        try:
            with torch.no_grad(), poutine.block():
                model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
        except Exception as error:
            return CheckReport(trace_table(guide_trace, None), (failure(pair, "model", args, error),))
        table = trace_table(guide_trace, model_trace)
        problems = [
            *site_problems(guide_trace, model_trace),
            *enumeration_problems(guide_trace, model_trace, bound),
            *shape_problems(guide_trace, "guide"),
            *shape_problems(model_trace, "model"),
            *support_problems(pair, model_trace),
            *plate_problems(guide_trace, model_trace, args),
            *scale_problems(guide_trace, model_trace),
        ]
        if not any(p.fatal for p in problems):
            if any(isinstance(b, TraceMeanField_ELBO) for b in layers(bound)):
                problems += [*mean_field_problems(pair, args), *density_problems(guide_trace)]
            problems += gradient_problems(pair, bound, args)
    return CheckReport(table, tuple(sorted(problems, key=lambda p: not p.fatal)))
