"""Several particles of a pair: in one pass where it broadcasts over them, else one by one.

Networks may not take a leading dimension of particles (batch norm takes rows and features
alone), or take it for something else. So it is tried once whether one pass gives each
particle the densities that it has in a pass of its own.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .aside import modes, preserve_rng
from .densities import over_particles, per_datum_log_prob
from .pair import Pair
from .reach import Program
from .runs import run
from .sites import VALUED, Role, Sites, expanded, sites
from .units import DataPlate, find_data_plate

logger = logging.getLogger(__name__)
Args = tuple[object, ...]
TRIED = 2  # particles


def find_particle_plate(
    model: Program,
    guide: Program,
    args: Args,
    num_particles: int,
) -> DataPlate:
    """The plate of the data, and whether the pair broadcasts over so many particles.

    Raises:
        ValueError: As for :func:`find_data_plate`.
    """
    plate = find_data_plate(model, guide, args)
    may = num_particles > 1 and broadcasts(model, guide, args, plate)
    return replace(plate, broadcasts=may)


def broadcasts(
    model: Program,
    guide: Program,
    args: Args,
    plate: DataPlate,
    *,
    guide_too: bool = True,
) -> bool:
    """Whether one pass for several particles gives the densities of one pass for each.

    The programs are run aside; buffers are the caller's. Dropout, whose noise differs from
    pass to pass, is switched off meanwhile.

    Arguments:
        model, guide: The pair.
        args: Their arguments.
        plate: The data plate.
        guide_too: Whether the guide is to broadcast as well as the model.
    """
    dropouts = list(_dropouts(Pair(model, guide)))
    try:
        with (
            modes(*dropouts, training=False),
            _refuse_other_rows(),
            poutine.block(),
            torch.no_grad(),
            preserve_rng(),
            pyro.validation_enabled(False),
        ):
            _compare(model, guide, args, plate, guide_too=guide_too)

    except Exception as error:  # whatever the programs raise: one by one they run
        logger.info("No pass holds several particles (%s): one by one.", error)
        return False
    return True


@contextlib.contextmanager
def _refuse_other_rows() -> Iterator[None]:
    """Raise afterwards where a batch norm met inputs with another number of dimensions.

    It would take another one for that of the features, which goes unnoticed as long as its
    running statistics are those of the start.
    """
    met: dict[nn.Module, set[int]] = {}

    def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if isinstance(module, _BatchNorm) and isinstance(inputs[0], Tensor):
            met.setdefault(module, set()).add(inputs[0].dim())

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()

    for module, dims in met.items():
        if len(dims) > 1:
            raise ValueError(f"{type(module).__name__} takes rows and features alone")


def _dropouts(pair: Pair) -> Iterator[nn.Module]:
    for module in pair.modules.values():
        for part in module.modules():
            if isinstance(part, _DropoutNd):
                yield part


def _compare(
    model: Program,
    guide: Program,
    args: Args,
    plate: DataPlate,
    *,
    guide_too: bool,
) -> None:
    """Raise where densities of several particles differ from those of each."""
    wide_guide = over_particles(guide, TRIED, plate)

    if guide_too:
        guide_trace = run(wide_guide, args)
        drawn = _expanded(guide_trace)

        # a Delta has a density only at the very value that the guide computes
        free = {n: s for n, s in drawn.items() if not isinstance(s["fn"], Delta)}
        if _has_density_anywhere(guide, guide_trace, args, free, plate):
            _compare_densities(guide, guide_trace, args, free, plate)
        rows = guide_trace
    else:
        each = [run(guide, args) for _ in range(TRIED)]
        drawn, rows = _side_by_side(each, plate), each[0]

    values = {name: site["value"] for name, site in drawn.items()}
    wide_model = over_particles(model, TRIED, plate)
    model_trace = run(wide_model, args, given=values, against=_rows_alone(rows))
    _compare_densities(model, model_trace, args, drawn, plate)


def _has_density_anywhere(
    guide: Program,
    trace: Trace,
    args: Args,
    given: Sites,
    plate: DataPlate,
) -> bool:
    """Whether a guide has a density at values that it has not just drawn itself.

    Some flows have none; they are taken at their word.
    """
    alone = sites(run(guide, args, against=_rows_alone(trace)), VALUED)
    values = {name: alone[name]["value"] for name in given}
    try:
        again = run(guide, args, given=values, against=_rows_alone(trace))
        per_datum_log_prob(again, plate.dim, particles=False)
    except Exception:
        return False
    return True


def _compare_densities(
    program: Program,
    trace: Trace,
    args: Args,
    given: Sites,
    plate: DataPlate,
) -> None:
    together = per_datum_log_prob(trace, plate.dim, particles=True)
    for k in range(TRIED):
        values = {name: site["value"][k] for name, site in given.items()}
        single = run(program, args, given=values, against=_rows_alone(trace))
        alone = per_datum_log_prob(single, plate.dim, particles=False)
        if not torch.allclose(alone, together[k], rtol=1e-3, atol=1e-2, equal_nan=True):
            raise ValueError("several in one pass have other densities than one by one")


def _rows_alone(trace: Trace) -> Trace:
    """The rows of plates that a trace has drawn."""
    found = Trace()
    for name, site in sites(trace, Role.SUBSAMPLING).items():
        if name != "_particles":
            found.add_node(name, **site)
    return found


def _expanded(trace: Trace) -> Sites:
    return {name: expanded(site) for name, site in sites(trace, VALUED).items()}


def _side_by_side(traces: list[Trace], plate: DataPlate) -> Sites:
    """The sites of single runs as those of one with particles in front."""
    found = _expanded(traces[0])
    for name, site in found.items():
        event_dim = len(site["fn"].event_shape)
        missing = plate.depth - (site["value"].dim() - event_dim)

        each = []
        for trace in traces:
            value = expanded(trace.nodes[name])["value"]
            each.append(value.reshape((1,) * missing + value.shape))
        found[name] = {**site, "value": torch.stack(each)}
    return found
