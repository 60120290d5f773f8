"""The sample sites of a pair as tables to read: shapes before training, ranges of values when something went wrong."""

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

from pyro_vaes.errors import CurableError, Cure, message_and_cures
from pyro_vaes.infer.handlers import COMMON_SCALE, needs_common_scale
from pyro_vaes.programs.pair import Pair

__all__ = ["random_sites", "explain", "site_table", "trace_table"]


def random_sites(trace: Trace) -> dict[str, Message]:
    """The sample sites of a trace, without those that draw a plate's rows."""
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def explain(error: Exception) -> tuple[str, tuple[Cure, ...]]:
    """What an exception says, with its kind unless it is a ValueError, and its cures; Pyro's commonest get words.

    The table of shapes that Pyro adds is left out where this library says what is wrong.
    """
    error = _without_table(error)
    text, cures = message_and_cures(error)
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"

    if "Shape mismatch inside plate" in text:
        text = (
            f"{text.splitlines()[0]}. Dimensions that belong to one datum are event dimensions: call .to_event(1) on "
            "the distribution (once for each of them); and the plate's size follows the batch, len(x)."
        )
    if needs_common_scale(error):
        text = f"{text.rstrip()} {COMMON_SCALE}"
    return text, cures


def _without_table(error: Exception) -> Exception:
    """The error as it was raised here, where Pyro has put its table of shapes behind it; any other as it is."""
    if not isinstance(error, ValueError):
        return error
    if not isinstance(error, CurableError):
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        if place is None or not place.tb_frame.f_globals.get("__name__", "").startswith("pyro_vaes."):
            return error

    while isinstance(error.__cause__, type(error)) and str(error).startswith(f"{error.__cause__}\n"):
        error = error.__cause__
    return error


def trace_table(guide_trace: Trace, model_trace: Trace | None) -> str:
    """The sites of both traces with distributions, shapes and plates."""
    lines = [f"{'site':<24}{'distribution':<40}{'batch shape':<16}{'event shape':<16}plates"]
    for label, trace in (("guide", guide_trace), ("model", model_trace)):
        if trace is None:
            continue
        lines.append(label)
        for name, site in random_sites(trace).items():
            fn, frames = site["fn"], [f"{f.name}[{f.size}]" for f in site["cond_indep_stack"]]
            inner = fn
            while hasattr(inner, "base_dist") and type(inner).__name__ in ("Independent", "ExpandedDistribution"):
                inner = inner.base_dist
            kind = type(inner).__name__ + (" (observed)" if site["is_observed"] else "")
            shapes = f"{tuple(fn.batch_shape)!s:<16}{tuple(fn.event_shape)!s:<16}"
            lines.append(f"  {name:<22}{kind:<40}{shapes}{', '.join(frames)}")
    return "\n".join(lines)


def site_table(pair: Pair, args: tuple[object, ...]) -> str:
    """The sites of both programs on a batch, with ranges of values and log-densities: where did the NaN come from?"""
    lines = [f"{'site':<30}{'value from':>12}{'to':>12}{'log density':>14}"]
    with pair.aside(), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        try:
            guide_trace = poutine.trace(pair.guide).get_trace(*args)
            model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*args)
        except Exception as error:
            return f"(the programs fail on this batch: {explain(error)[0]})"
        for label, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in random_sites(trace).items():
                value, log_prob = site["value"].detach().float(), site["fn"].log_prob(site["value"]).sum()
                # a factor holds no numbers
                low, high = (f"{v:.4g}" for v in value.aminmax()) if value.numel() else ("-", "-")
                lines.append(f"{label + ' ' + name:<30}{low:>12}{high:>12}{log_prob:>14.6g}")
    bad = [n for n, p in pair.parameters.items() if not p.isfinite().all()]
    if bad:
        lines.append(f"parameters that are not finite: {', '.join(bad[:8])}")
    return "\n".join(lines)
