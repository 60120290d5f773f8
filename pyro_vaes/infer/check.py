"""A dry run of a model/guide pair on one batch: the trace table, and what is wrong, in words."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.infer.bound import layers
from pyro_vaes.infer.handlers import is_latent
from pyro_vaes.infer.mean_field import mean_field_violations
from pyro_vaes.infer.pair import Pair
from pyro_vaes.infer.programs import Program
from pyro_vaes.infer.quiet import quiet_elbo
from pyro_vaes.infer.tables import random_sites, said, site_table, trace_table

__all__ = ["CheckReport", "Problem", "check", "mean_field_problems", "mean_field_violations"]

Hint = Callable[[Tensor], str | None]  # what a likelihood says about data that it cannot score


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or may be."""

    text: str
    fatal: bool = True


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

    def raise_if_fatal(self) -> None:
        """Raise a ValueError that holds the fatal problems, if there are any."""
        if not self.ok:
            raise ValueError(" ".join(p.text for p in self.problems if p.fatal))

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
        batch: A tensor or a tuple of tensors, the programs' arguments.
        loss: The bound that will be used; ``Trace_ELBO()`` by default.

    Returns:
        A report that prints itself; ``report.ok`` says whether the pair can be trained.

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
    pair, bound = Pair(model, guide), Trace_ELBO() if loss is None else loss
    args = pair.arguments(batch)
    problems = list(_data_problems(args))
    if problems:
        return CheckReport("", tuple(problems))
    with pair.aside(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), poutine.block():
                guide_trace = poutine.trace(guide).get_trace(*args)
        except Exception as error:
            return CheckReport("", (Problem(f"The guide fails on this batch: {said(error)}"),))
        try:
            with torch.no_grad(), poutine.block():
                model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
        except Exception as error:
            return CheckReport(
                trace_table(guide_trace, None), (Problem(f"The model fails on this batch: {said(error)}"),)
            )
        table = trace_table(guide_trace, model_trace)
        problems = [
            *_site_problems(guide_trace, model_trace),
            *_enumeration_problems(guide_trace, model_trace, bound),
            *_shape_problems(guide_trace, "guide"),
            *_shape_problems(model_trace, "model"),
            *_support_problems(pair, model_trace),
            *_plate_problems(guide_trace, model_trace, args),
            *_scale_problems(guide_trace, model_trace),
        ]
        if not any(p.fatal for p in problems):
            if any(isinstance(b, TraceMeanField_ELBO) for b in layers(bound)):
                problems += [*mean_field_problems(pair, args), *_density_problems(guide_trace)]
            problems += _gradient_problems(pair, bound, args)
    return CheckReport(table, tuple(sorted(problems, key=lambda p: not p.fatal)))


def _data_problems(args: tuple[object, ...]) -> Iterator[Problem]:
    for position, value in enumerate(args):
        name = "x" if position == 0 else f"argument {position + 1}"
        if not isinstance(value, Tensor):
            continue
        if value.dim() and len(value) == 0:
            yield Problem(f"The batch is empty: {name} has shape {tuple(value.shape)}. Is the split or filter right?")
        elif value.is_floating_point() and not value.isfinite().all():
            bad = (~value.isfinite()).sum().item()
            yield Problem(
                f"{name} holds {bad} values that are NaN or infinite (of {value.numel()}). Drop those rows, or fill "
                "them "
                "in, for example with torch.nan_to_num."
            )
        elif value.dtype == torch.uint8:
            yield Problem(
                f"{name} has dtype uint8, but networks compute in floats. Divide pixels by 255 (x.float() / 255), or "
                "use "
                "pyro_vaes.data.from_tensors, which does it batch by batch."
            )


def _site_problems(guide_trace: Trace, model_trace: Trace) -> Iterator[Problem]:
    guide, model = random_sites(guide_trace), random_sites(model_trace)
    latents = {n: s for n, s in model.items() if is_latent(s)}
    if not any(s["is_observed"] and not s["infer"].get("_deterministic") for s in model.values()):
        yield Problem("The model observes nothing: give one sample statement the data (obs=x).")
    for name, site in latents.items():
        enumerated = site["infer"].get("enumerate") is not None
        if name not in guide and not enumerated:
            yield Problem(f"The model's latent site {name!r} has no counterpart in the guide; sample it there too.")
    for name, site in guide.items():
        if name not in model and not site["infer"].get("is_auxiliary") and not site["is_observed"]:
            yield Problem(
                f"The guide samples {name!r}, which the model does not have. Rename it to one of "
                f"{sorted(latents)}, or mark it infer={{'is_auxiliary': True}}."
            )
        elif name in latents and site["fn"].event_shape != latents[name]["fn"].event_shape:
            yield Problem(
                f"At {name!r} the guide's events have shape {tuple(site['fn'].event_shape)} but the model's have "
                f"{tuple(latents[name]['fn'].event_shape)}. Is .to_event(1) missing on one side?"
            )


def _enumeration_problems(guide_trace: Trace, model_trace: Trace, bound: ELBO) -> Iterator[Problem]:
    """Sites that are left to a bound that sums over them, with a bound that does not."""
    if isinstance(getattr(bound, "base", bound), TraceEnum_ELBO | TraceTMC_ELBO):
        return
    for name, site in {**random_sites(model_trace), **random_sites(guide_trace)}.items():
        if is_latent(site) and site["infer"].get("enumerate") is not None:
            does = "draw it, at a high variance" if name in guide_trace.nodes else "draw it from the prior"
            yield Problem(
                f"The site {name!r} is to be enumerated, but {type(bound).__name__} does not sum over it: it would "
                f"{does}. Use TraceEnum_ELBO, or a model without the site, whose prior is the mixture itself."
            )


def _shape_problems(trace: Trace, label: str) -> Iterator[Problem]:
    for name, site in random_sites(trace).items():
        if site["infer"].get("_deterministic"):
            continue
        frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
        if not frames and label == "model" and site["is_observed"]:
            yield Problem(
                f"The observed site {name!r} lies in no plate, so its data do not count as independent. Put it into "
                "`with pyro.plate('data', len(x)):`."
            )
        fn, value = site["fn"], site["value"]
        try:
            torch.broadcast_shapes(fn.event_shape, value.shape[value.dim() - len(fn.event_shape) :])
            batch_shape = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - len(fn.event_shape)])
        except RuntimeError:
            yield Problem(
                f"At {name!r} the {label}'s distribution has shape {tuple(fn.batch_shape)} + {tuple(fn.event_shape)} "
                "but "
                f"the value has {tuple(value.shape)}. Does the decoder's last layer, or the plate's size, follow the "
                "data?"
            )
            continue
        for dim in range(-len(batch_shape), 0):
            size = batch_shape[dim]
            if dim in frames and size not in (1, frames[dim].size):
                yield Problem(
                    f"At {name!r} the {label}'s batch dimension {dim} has size {size} but the plate "
                    f"{frames[dim].name!r} has {frames[dim].size}. Does the plate's size follow len(x)?"
                )
            elif dim not in frames and size > 1:
                yield Problem(
                    f"At {name!r} the {label} has batch shape {tuple(batch_shape)}, whose dimension {dim} of size "
                    f"{size} "
                    "no plate declares. If it belongs to one datum, call "
                    f".to_event({len(batch_shape) - len(frames)}) "
                    "on the distribution; else open a plate for it."
                )
                break


def _support_problems(pair: Pair, trace: Trace) -> Iterator[Problem]:
    modules = [m for module in pair.modules.values() for m in module.modules()]
    hints = cast(list[Hint], [m.hint for m in modules if callable(getattr(m, "hint", None))])
    for name, site in random_sites(trace).items():
        if not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        try:
            inside = bool(site["fn"].support.check(site["value"]).all())
        except NotImplementedError:
            continue
        if not inside:
            hint = next(filter(None, (find(site["value"]) for find in hints)), None)
            value, fn = site["value"], site["fn"]
            while hasattr(fn, "base_dist"):
                fn = fn.base_dist
            cure = hint or (
                "the data are grey but the likelihood is binary: binarise them, or use a continuous Bernoulli."
                if type(fn).__name__ == "Bernoulli"
                else "rescale the data or choose a likelihood for them."
            )
            yield Problem(
                f"The observed {name!r} lies outside the support of its {type(fn).__name__} distribution (values from "
                f"{value.min().item():g} to {value.max().item():g}): {cure}"
            )


def _plates(trace: Trace) -> dict[str, int]:
    """The number of data that each plate stands for."""
    frames = [f for s in random_sites(trace).values() for f in s["cond_indep_stack"] if f.vectorized]
    return {f.name: f.size if f.full_size is None else f.full_size for f in frames}


def _plate_problems(guide_trace: Trace, model_trace: Trace, args: tuple[object, ...]) -> Iterator[Problem]:
    guide = _plates(guide_trace)
    for name, size in _plates(model_trace).items():
        if guide.get(name, size) != size:
            yield Problem(
                f"The plate {name!r} has size {size} in the model but {guide[name]} in the guide. Give both the "
                "number of data, len(x) where there is no subsampling."
            )
    for name, site in random_sites(model_trace).items():
        value, sizes = site["value"], [f.size for f in site["cond_indep_stack"] if f.vectorized]
        # a constant may be observed in each row (soft constraints), but not the data themselves
        if max(sizes, default=1) > 1 and value.dim() == len(site["fn"].event_shape) and any(value is a for a in args):
            yield Problem(
                f"The observed {name!r} has shape {tuple(value.shape)}, which is one datum: there is no row for each "
                "of "
                f"the {max(sizes)} that its plate holds. Is the batch dimension missing (x.unsqueeze(0))?"
            )


def _scale_problems(guide_trace: Trace, model_trace: Trace) -> Iterator[Problem]:
    guide = random_sites(guide_trace)
    for name, site in random_sites(model_trace).items():
        if is_latent(site) and name in guide:
            ours, theirs = torch.as_tensor(site["scale"]).mean(), torch.as_tensor(guide[name]["scale"]).mean()
            if not torch.isclose(ours, theirs, rtol=1e-6):
                yield Problem(
                    f"The latent site {name!r} has scale {ours:g} in the model but {theirs:g} in the guide. A KL "
                    "weight "
                    "goes on both sides: scale_latents around the step, or on both programs.",
                    fatal=False,
                )


def mean_field_problems(pair: Pair, args: tuple[object, ...]) -> Iterator[Problem]:
    """Sites at which TraceMeanField_ELBO would use an analytic KL that is wrong for this pair."""
    violating, _ = mean_field_violations(pair, args)
    for name in sorted(violating):
        yield Problem(
            f"TraceMeanField_ELBO is wrong for this pair: it would use the analytic KL of {name!r}, whose prior "
            "depends on "
            f"a latent that the guide draws after and from {name!r}. Use Trace_ELBO, or a top-down guide."
        )


def _density_problems(guide_trace: Trace) -> Iterator[Problem]:
    """Guides whose densities do not suit analytic KLs."""
    for name, site in random_sites(guide_trace).items():
        if site["infer"].get("analytic_kl") is False:
            yield Problem(
                f"TraceMeanField_ELBO does not suit the site {name!r} of this guide: log q(z) - log p(x, z) cancels at "
                "each draw of z, and an expected KL beside a sampled likelihood does not, so the bound's variance "
                "would be large even with the exact posterior. Use Trace_ELBO."
            )
        if not site["is_observed"] and not site["fn"].has_rsample:
            yield Problem(
                f"TraceMeanField_ELBO is wrong for this pair: the guide draws {name!r} ({type(site['fn']).__name__}) "
                "without reparameterisation, and its score function would be left out. Use Trace_ELBO, or for a "
                "mixture StratifiedMixture_ELBO."
            )


def _gradient_problems(pair: Pair, loss: ELBO, args: tuple[object, ...]) -> Iterator[Problem]:
    try:
        with quiet_elbo():
            value = pair.discover(loss, args)
    except Exception as error:
        yield Problem(f"{type(loss).__name__} fails on this pair: {said(error)}")
        return
    if value is not None and not torch.isfinite(value):
        yield Problem(
            f"The loss is {value.item()} on this batch. Is a scale zero, or a logarithm taken of "
            f"0?\n{site_table(pair, args)}"
        )
        return
    if pair.unreached:
        yield Problem(
            f"No gradient reaches {len(pair.unreached)} parameters: {', '.join(pair.unreached[:6])}. They will stay "
            "as they "
            "are; is that part of the network used?",
            fatal=False,
        )
