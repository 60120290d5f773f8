"""The sample sites of a pair as tables to read.

Before training they show shapes; when something went wrong, ranges of values.
"""

import pyro
import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, Independent

from pyro_vaes.errors import CurableError, Cure, message_and_cures
from pyro_vaes.programs import Pair, run_pair, sites

from ..handlers import COMMON_SCALE, needs_common_scale
from .program_record import ProgramRecord

Args = tuple[object, ...]


def explain(error: Exception) -> tuple[str, tuple[Cure, ...]]:
    """What an exception says, with its kind unless it is a ValueError, and its cures.

    Pyro's commonest errors get words.

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


def trace_table(*programs: ProgramRecord) -> str:
    """The sites of programs with distributions, shapes and plates."""
    columns = f"{'site':<24}{'distribution':<40}{'batch shape':<16}{'event shape':<16}"
    lines = [f"{columns}plates"]

    for program in programs:
        lines.append(program.label)
        for name, site in program.all_sites.items():
            fn = site["fn"]
            kind = family(fn) + (" (observed)" if site["is_observed"] else "")
            shapes = f"{tuple(fn.batch_shape)!s:<16}{tuple(fn.event_shape)!s:<16}"
            around = [f"{plate.name}[{plate.size}]" for plate in program.plates[name]]
            lines.append(f"  {name:<22}{kind:<40}{shapes}{', '.join(around)}")

    return "\n".join(lines)


def family(fn: object) -> str:
    """Name of a distribution's class, under ``to_event`` and ``expand``."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return type(fn).__name__


def site_table(pair: Pair, args: Args) -> str:
    """The sites of both programs on a batch, with ranges of values and log-densities.

    It shows where a NaN came from.
    """
    lines = [f"{'site':<30}{'value from':>12}{'to':>12}{'log density':>14}"]
    with pair.aside(), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        try:
            traces = run_pair(pair.model, pair.guide, args)
        except Exception as error:
            return f"(the programs fail on this batch: {explain(error)[0]})"

        for label, trace in (("guide", traces.guide), ("model", traces.model)):
            for name, site in sites(trace).items():
                value = site["value"].detach().float()
                log_prob = site["fn"].log_prob(site["value"]).sum()
                low, high = "-", "-"
                if value.numel():  # a factor holds no numbers
                    low, high = (f"{v:.4g}" for v in value.aminmax())
                row = f"{label + ' ' + name:<30}{low:>12}{high:>12}{log_prob:>14.6g}"
                lines.append(row)

    bad = [n for n, p in pair.parameters.items() if not p.isfinite().all()]
    if bad:
        lines.append(f"parameters that are not finite: {', '.join(bad[:8])}")
    return "\n".join(lines)
