"""Latents that a model sums over: their log-sum-exp for each unit, and draws of them.

    log p(x_n, z_n) = log sum_c p(x_n, z_n, c)

The sum is over each unit's own factors, by Pyro's message passing, so that latents of
inner plates and of Markov chains are summed one by one.
"""

from collections import OrderedDict

from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.infer import infer_discrete
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .reach import Program
from .runs import run
from .sites import DENSITIES, DRAWN, Role, log_density, role, sites
from .units import DataPlate

Args = tuple[object, ...]


def summed_log_prob(
    model: Program,
    args: Args,
    against: Trace,
    plate: DataPlate,
    *,
    particles: bool,
) -> Tensor:
    """The unscaled log-density of each unit, ``(K, B)``, enumerated sites summed out.

    Arguments:
        model: The model, inside the plate of particles if there is one.
        args: Its arguments.
        against: A trace of the guide, whose draws the model takes over.
        plate: The data plate.
        particles: Whether there is a plate of particles; without it ``(B,)``.
    """
    given, first_free = _given(model, against), -1 - plate.depth - int(particles)
    whole = run(poutine.enum(given, first_available_dim=first_free), args)
    trace = prune_subsample_sites(whole)
    trace.compute_log_prob()
    trace.pack_tensors()

    sizes: dict[str, int] = {}
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    summed: set[str] = set()
    for site in sites(trace, DENSITIES).values():
        around = set()
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                symbol = trace.plate_to_symbol[frame.name]
                around.add(symbol)
                sizes[symbol] = int(frame.size)

        factor = pack(_log_density(site), site["infer"]["_dim_to_symbol"])
        summed |= set(factor._pyro_dims) - around

        # a plate with one row has no dimension in what is packed
        ordinal = frozenset(symbol for symbol in around if sizes[symbol] > 1)
        factors.setdefault(ordinal, []).append(factor)

    wanted = [trace.plate_to_symbol[plate.name]]
    if particles:
        wanted.insert(0, trace.plate_to_symbol["_particles"])
    kept = [symbol for symbol in wanted if sizes[symbol] > 1]

    total = contract_to_tensor(factors, summed, frozenset(kept))
    order = [total._pyro_dims.index(symbol) for symbol in kept]
    return total.permute(order).reshape([sizes[symbol] for symbol in wanted])


def _log_density(site: Message) -> Tensor:
    """The unscaled density of a site; of one that is summed over, without its mask.

    Where a site is masked it counts for nothing, and so it does if it has its prior, which
    sums to one: masked densities, which are ones, sum to the number of values.
    """
    if role(site) is not Role.ENUMERATED:
        return log_density(site, scaled=False)

    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    log_prob = fn.log_prob(site["value"])
    assert isinstance(log_prob, Tensor)
    return log_prob


def draw_enumerated(
    model: Program,
    args: Args,
    against: Trace,
    plate: DataPlate,
    *,
    particles: bool,
) -> Trace:
    """A trace of the model in which enumerated sites are draws from their posterior.

    That is the one given the guide's draws and the data. Arguments are those of
    :func:`summed_log_prob`.
    """
    given, first_free = _given(model, against), -1 - plate.depth - int(particles)
    drawn = infer_discrete(given, first_available_dim=first_free)
    trace = prune_subsample_sites(run(drawn, args))

    # the guide's draws are latents all the same
    for name in sites(against, DRAWN):
        if name in trace:
            trace.nodes[name]["is_observed"] = False
    return trace


def _given(model: Program, against: Trace) -> Program:
    """The model at the draws and on the rows of a trace.

    The draws are given as observations: enumeration leaves the dimensions of what it
    finds replayed unnamed.
    """
    values = {name: site["value"] for name, site in sites(against, DRAWN).items()}
    rows = Trace()
    for name, site in sites(against, Role.SUBSAMPLING).items():
        rows.add_node(name, **site)
    return poutine.replay(poutine.condition(model, data=values), trace=rows)
