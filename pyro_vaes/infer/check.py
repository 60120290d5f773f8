"""A dry run of a model/guide pair on one batch: the trace table, and what is wrong, in words."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vaes.infer.handlers import is_latent, local_parameters
from pyro_vaes.infer.pair import Pair, preserve_rng
from pyro_vaes.infer.quiet import quiet_elbo

__all__ = ["CheckReport", "Problem", "check", "mean_field_violations", "site_table"]

Program = Callable[..., object]


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
    with preserve_rng(), local_parameters(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), poutine.block():
                guide_trace = poutine.trace(guide).get_trace(*args)
        except Exception as error:  # noqa: BLE001 - whatever the user's program raises is reported
            return CheckReport("", (Problem(f"The guide fails on this batch: {_said(error)}"),))
        try:
            with torch.no_grad(), poutine.block():
                model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
        except Exception as error:  # noqa: BLE001
            return CheckReport(
                _table(guide_trace, None), (Problem(f"The model fails on this batch: {_said(error)}"),)
            )
        table = _table(guide_trace, model_trace)
        problems = [
            *_site_problems(guide_trace, model_trace),
            *_shape_problems(guide_trace, "guide"),
            *_shape_problems(model_trace, "model"),
            *_support_problems(pair, model_trace),
            *_scale_problems(guide_trace, model_trace),
        ]
        if not any(p.fatal for p in problems):
            if isinstance(bound, TraceMeanField_ELBO):
                problems += _mean_field_problems(pair, args)
            problems += _gradient_problems(pair, bound, args)
    return CheckReport(table, tuple(sorted(problems, key=lambda p: not p.fatal)))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


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
                f"{name} holds {bad} values that are NaN or infinite (of {value.numel()}). Drop those rows, or fill them "
                "in, for example with torch.nan_to_num."
            )
        elif value.dtype == torch.uint8:
            yield Problem(
                f"{name} has dtype uint8, but networks compute in floats. Divide pixels by 255 (x.float() / 255), or use "
                "pyro_vaes.data.from_tensors, which does it batch by batch."
            )


def _random(trace: Trace) -> dict[str, Message]:
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def _site_problems(guide_trace: Trace, model_trace: Trace) -> Iterator[Problem]:
    guide, model = _random(guide_trace), _random(model_trace)
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


def _shape_problems(trace: Trace, label: str) -> Iterator[Problem]:
    for name, site in _random(trace).items():
        if site["infer"].get("_deterministic"):
            continue
        frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
        if not frames and label == "model" and site["is_observed"]:
            yield Problem(
                f"The observed site {name!r} lies in no plate, so its data do not count as independent. Put it into "
                "`with pyro.plate('data', len(x)):`."
            )
        batch_shape = torch.broadcast_shapes(
            site["fn"].batch_shape, site["value"].shape[: site["value"].dim() - len(site["fn"].event_shape)]
        )
        for dim in range(-len(batch_shape), 0):
            size = batch_shape[dim]
            if dim in frames and size not in (1, frames[dim].size):
                yield Problem(
                    f"At {name!r} the {label}'s batch dimension {dim} has size {size} but the plate "
                    f"{frames[dim].name!r} has {frames[dim].size}. Does the plate's size follow len(x)?"
                )
            elif dim not in frames and size > 1:
                yield Problem(
                    f"At {name!r} the {label} has batch shape {tuple(batch_shape)}, whose dimension {dim} of size {size} "
                    f"no plate declares. If it belongs to one datum, call .to_event({-dim if frames else len(batch_shape)}) "
                    "on the distribution; else open a plate for it."
                )
                break


def _support_problems(pair: Pair, trace: Trace) -> Iterator[Problem]:
    hints = [m for module in pair.modules.values() for m in module.modules() if hasattr(m, "hint")]
    for name, site in _random(trace).items():
        if not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        try:
            inside = bool(site["fn"].support.check(site["value"]).all())
        except NotImplementedError:
            continue
        if not inside:
            said = next(filter(None, (m.hint(site["value"]) for m in hints)), None)
            value, fn = site["value"], site["fn"]
            while hasattr(fn, "base_dist"):
                fn = fn.base_dist
            cure = said or (
                "the data are grey but the likelihood is binary: binarise them, or use a continuous Bernoulli."
                if type(fn).__name__ == "Bernoulli"
                else "rescale the data or choose a likelihood for them."
            )
            yield Problem(
                f"The observed {name!r} lies outside the support of its {type(fn).__name__} distribution (values from "
                f"{value.min().item():g} to {value.max().item():g}): {cure}"
            )


def _scale_problems(guide_trace: Trace, model_trace: Trace) -> Iterator[Problem]:
    guide = _random(guide_trace)
    for name, site in _random(model_trace).items():
        if is_latent(site) and name in guide:
            ours, theirs = float(site["scale"]), float(guide[name]["scale"])
            if abs(ours - theirs) > 1e-6 * abs(ours):
                yield Problem(
                    f"The latent site {name!r} has scale {ours:g} in the model but {theirs:g} in the guide. A KL weight "
                    "goes on both sides (scale_latents around the step, or on both programs), and both data plates need "
                    "the same sizes.",
                    fatal=False,
                )


def _dependencies(program: Program, values: dict[str, Tensor], args: tuple[object, ...]) -> dict[str, set[str]]:
    """For each latent site, the other latent sites on whose values its density depends."""
    leaves = {n: v.detach().clone().requires_grad_() for n, v in values.items() if v.is_floating_point()}
    with torch.enable_grad(), poutine.block():
        trace = poutine.trace(poutine.condition(program, data={**values, **leaves})).get_trace(*args)
        found = {}
        for name in values:
            log_prob = trace.nodes[name]["fn"].log_prob(values[name].detach()).sum()
            others = {n: leaf for n, leaf in leaves.items() if n != name}
            if not others or not log_prob.requires_grad:
                found[name] = set[str]()
                continue
            gradients = torch.autograd.grad(log_prob, list(others.values()), allow_unused=True, retain_graph=True)
            found[name] = {n for n, g in zip(others, gradients, strict=True) if g is not None}
    return found


def mean_field_violations(pair: Pair, args: tuple[object, ...]) -> tuple[set[str], set[str]]:
    """Sites whose analytic KL would be wrong, and sites that the guide draws given other latent sites.

    An analytic KL of a site is right if the guide draws the site after, or independently of, every variable on which
    its prior depends.
    """
    with torch.no_grad(), poutine.block():
        sites = _random(poutine.trace(pair.guide).get_trace(*args))
        model = _random(poutine.trace(pair.model).get_trace(*args))
    values = {n: s["value"] for n, s in sites.items() if n in model and not s["is_observed"]}
    if len(values) < 2 or len(values) < len(sites):  # a joint density in an auxiliary site is no analytic KL at all
        return (set(), set()) if len(values) < 2 else (set(values), set(values))
    order = list(values)
    prior, posterior = _dependencies(pair.model, values, args), _dependencies(pair.guide, values, args)

    def ancestors(name: str) -> set[str]:
        direct = posterior[name]
        return direct.union(*(ancestors(d) for d in direct)) if direct else set()

    violating = {
        name
        for name in order
        for parent in prior[name]
        if order.index(parent) > order.index(name) and name in ancestors(parent)
    }
    return violating, {name for name in order if posterior[name]}


def _mean_field_problems(pair: Pair, args: tuple[object, ...]) -> Iterator[Problem]:
    violating, _ = mean_field_violations(pair, args)
    for name in sorted(violating):
        yield Problem(
            f"TraceMeanField_ELBO is wrong for this pair: it would use the analytic KL of {name!r}, whose prior depends on "
            f"a latent that the guide draws after and from {name!r}. Use Trace_ELBO, or a top-down guide."
        )


def _gradient_problems(pair: Pair, loss: ELBO, args: tuple[object, ...]) -> Iterator[Problem]:
    if not hasattr(loss, "differentiable_loss"):
        return
    try:
        with quiet_elbo():
            pair.discover(loss, args)
            value = loss.differentiable_loss(pair.model, pair.guide, *args)
    except Exception as error:  # noqa: BLE001
        yield Problem(f"{type(loss).__name__} fails on this pair: {_said(error)}")
        return
    if not torch.isfinite(value):
        yield Problem(f"The loss is {value.item()} on this batch.\n{site_table(pair, args)}")
        return
    if pair.unreached:
        yield Problem(
            f"No gradient reaches {len(pair.unreached)} parameters: {', '.join(pair.unreached[:6])}. They will stay as they "
            "are; is that part of the network used?",
            fatal=False,
        )


def _table(guide_trace: Trace, model_trace: Trace | None) -> str:
    lines = [f"{'site':<24}{'distribution':<28}{'batch shape':<16}{'event shape':<16}plates"]
    for label, trace in (("guide", guide_trace), ("model", model_trace)):
        if trace is None:
            continue
        lines.append(label)
        for name, site in _random(trace).items():
            fn, frames = site["fn"], [f"{f.name}[{f.size}]" for f in site["cond_indep_stack"]]
            inner = fn
            while hasattr(inner, "base_dist") and type(inner).__name__ in ("Independent", "ExpandedDistribution"):
                inner = inner.base_dist
            kind = type(inner).__name__ + (" (observed)" if site["is_observed"] else "")
            shapes = f"{tuple(fn.batch_shape)!s:<16}{tuple(fn.event_shape)!s:<16}"
            lines.append(f"  {name:<22}{kind:<28}{shapes}{', '.join(frames)}")
    return "\n".join(lines)


def site_table(pair: Pair, args: tuple[object, ...]) -> str:
    """The sites of both programs on a batch, with ranges of values and log-densities: where did the NaN come from?"""
    lines = [f"{'site':<30}{'value from':>12}{'to':>12}{'log density':>14}"]
    with preserve_rng(), local_parameters(), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        try:
            guide_trace = poutine.trace(pair.guide).get_trace(*args)
            model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*args)
        except Exception as error:  # noqa: BLE001
            return f"(the programs fail on this batch: {_said(error)})"
        for label, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in _random(trace).items():
                value = site["value"].detach().float()
                log_prob = site["fn"].log_prob(site["value"]).sum().item()
                lines.append(f"{label + ' ' + name:<30}{value.min().item():>12.4g}{value.max().item():>12.4g}{log_prob:>14.6g}")
    bad = [n for n, p in pair.parameters.items() if not p.isfinite().all()]
    if bad:
        lines.append(f"parameters that are not finite: {', '.join(bad[:8])}")
    return "\n".join(lines)
