"""A fitted pair as ArviZ sees it: all groups, dimensions named by the plates.

Groups: posterior (latents from the guide), prior and prior_predictive (the model run forward), posterior_predictive
(replicates), observed_data, constant_data (further arguments), log_likelihood (per datum), and sample_stats with the
log importance weight of each draw and the Pareto k-hat of each datum. There is one chain, so R-hat means nothing here;
k-hat and the effective sample size of the weights say how good the guide is.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import arviz as az
import numpy as np
import torch
from pyro.poutine.messenger import unwrap
from pyro.poutine.runtime import Message
from torch import Tensor
from xarray import Dataset, DataTree

from pyro_vaes.diagnostics.likelihood.likelihood import pareto_khat
from pyro_vaes.diagnostics.particles import Particles
from pyro_vaes.diagnostics.sites import Args, aligned
from pyro_vaes.programs import Program, plates, was_observed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summary", "to_datatree", "to_inference_data"]

Key = tuple[str, str]
Groups = dict[str, dict[str, tuple[list[str], np.ndarray]]]

GROUPS = (
    "posterior",
    "prior",
    "posterior_predictive",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
)


def to_datatree(
    model: Program,
    guide: Program,
    data: object,
    draws: int = 200,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[object]] | None = None,
    pointwise: bool = False,
    groups: Collection[str] = GROUPS,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
) -> DataTree:
    """Draw from a pair and collect everything into an ArviZ ``DataTree``.

    Draws are streamed to the CPU in chunks. The predictive groups are as large as the data times the draws: leave them
    out of ``groups`` for many draws of many images.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments for N data: a tensor, a tuple of tensors, a data set's part, or a loader.
        draws: Draws of the latents per datum.
        dims: Names of event dimensions by site, e.g. ``{"x": ["row", "column"]}``; ``{site}_dim_{i}`` by default.
        coords: Coordinate values by dimension.
        pointwise: Whether log_likelihood is per element of the observation (as LOO-PIT plots want it) rather than per
            datum with events summed.
        groups: Names of the groups wanted.
        batch_size: Rows per pass.
        chunk_size: Draws per pass.
        seed: Seed of the draws.

    Returns:
        A tree that ``tree.to_netcdf(path)`` writes and ``xarray.open_datatree(path)`` reads.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> vae = VAE(Chain(MLP(16, [8], 8), NormalHead(8, 2)), MLP(2, [8], 16), BernoulliLikelihood(), latent_dim=2)
        >>> tree = to_datatree(vae.model, vae.guide, torch.zeros(5, 16), draws=10)
        >>> dict(tree.posterior.sizes)
        {'chain': 1, 'draw': 10, 'data': 5, 'z_dim_0': 2}
    """
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown or draws < 1:
        raise ValueError(f"draws must be at least 1 and groups among {list(GROUPS)}, but got {draws} and {unknown}.")
    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        chunk_size=chunk_size,
        seed=seed,
        scored=True,
        pointwise=pointwise,
    )
    collected = _Collector(particles, draws, dict(dims or {}), frozenset(groups)).collect()
    given, plate = dict(coords or {}), particles.plate.name
    tree = {}
    for group in sorted(collected, key=GROUPS.index):
        sizes = {d: n for names, array in collected[group].values() for d, n in zip(names, array.shape, strict=True)}
        axes = {d: given.get(d, np.arange(n)) for d, n in sizes.items()}
        wrong = {d: len(values) for d, values in axes.items() if len(values) != sizes[d]}
        if wrong:
            raise ValueError(f"coords have lengths {wrong}, but these dimensions have sizes {sizes}.")
        tree[group] = Dataset(collected[group], coords=axes, attrs={"inference_library": "pyro", "data_plate": plate})
    return DataTree.from_dict(tree)


def to_inference_data(tree: DataTree) -> object:
    """The groups of a tree as an ``InferenceData``, which the functions of ArviZ 0.23 and earlier take.

    Arguments:
        tree: From :func:`to_datatree`.

    Raises:
        ImportError: ArviZ 1 and later know only ``DataTree``.
    """
    if int(az.__version__.split(".")[0]) >= 1:
        raise ImportError(f"ArviZ {az.__version__} has no InferenceData: its functions take the tree itself.")
    return az.InferenceData(**{name: node.to_dataset() for name, node in tree.children.items()})  # type: ignore[arg-type]


def summary(tree: DataTree, *, group: str = "posterior", datum: int | None = None) -> "pd.DataFrame":
    """ArviZ's table of means, deviations and intervals of the latents, without what needs several chains.

    Arguments:
        tree: From :func:`to_datatree`.
        group: ``"posterior"`` or ``"prior"``.
        datum: One datum only; by default the draws of all data are pooled, which shows the aggregate posterior. Pooled
            draws have the prior's spread whether or not a unit collapsed; look at single data for that.
    """
    dataset = tree[group].to_dataset()
    plate = dataset.attrs["data_plate"]
    if datum is not None:
        dataset = dataset.isel({plate: datum})
    else:
        dataset = dataset.rename(draw="_draw").stack(draw=("_draw", plate), create_index=False)
        dataset = dataset.transpose("chain", "draw", ...)
    return az.summary(az.convert_to_dataset(dataset), kind="stats")


class _Collector:
    """Streams draws batch by batch into ``{group: {variable: (dimensions, array)}}``."""

    def __init__(
        self, particles: Particles, draws: int, dims: dict[str, Sequence[str]], groups: frozenset[str]
    ) -> None:
        self.particles, self.draws, self.event_names, self.groups = particles, draws, dims, groups
        self.dims: dict[Key, list[str]] = {}

    def collect(self) -> Groups:
        particles = self.particles
        batches = []
        with particles.rows() as rows:
            for args in rows:
                chunks = [self._chunk(args, k) for k in particles.chunks(self.draws)]
                drawn = {key: torch.cat([c.pop(key) for c in chunks]) for key in list(chunks[0]) if self._varies(key)}
                batches.append(drawn | chunks[0] | self._fixed(args, drawn, chunks[0]))
        unknown = sorted(self.event_names.keys() - {name for _, name in self.dims})
        if unknown:
            raise ValueError(f"dims names the sites {unknown}, but there are only {sorted({n for _, n in self.dims})}.")
        groups: Groups = {}
        for group, name in [k for k in batches[0] if k[0] in self.groups and all(k in b for b in batches)]:
            names = self.dims[group, name]
            where = names.index(particles.plate.name)
            array = torch.cat([b.pop((group, name)) for b in batches], dim=where)
            if particles.limit is not None:
                array = array.narrow(where, 0, particles.limit)
            sampled = self._varies((group, name))
            variable = (["chain", *names], array.numpy()[None]) if sampled else (names, array.numpy())
            groups.setdefault(group, {})[name] = variable
        return groups

    def _varies(self, key: Key) -> bool:
        return self.dims[key][0] == "draw"

    def _chunk(self, args: Args, num: int) -> dict[Key, Tensor]:
        """One pass of draws as ``{(group, variable): (draw, *plates, *event)}``, and what was observed."""
        particles, plate = self.particles, self.particles.plate
        draws = particles.draw(args, num)
        found: dict[Key, Tensor] = {}

        def put(group: str, name: str, value: Tensor, dims: list[str]) -> None:
            found[group, name] = value.cpu()
            self.dims[group, name] = dims

        latents = draws.latents()
        for name, site in latents.items():
            put("posterior", name, aligned(site, plate), ["draw", *self._site_dims(name, site)])
        for name, site in draws.observations().items():
            dims, plates = self._site_dims(name, site), self._plates(site)
            put("observed_data", name, aligned(site, plate)[0], dims)
            log_prob = aligned(site, plate, key="log_prob")
            event = log_prob.dim() - 1 - len(plates)
            put("log_likelihood", name, log_prob, ["draw", *plates, *dims[len(plates) :][:event]])
        if "posterior_predictive" in self.groups:
            for name, value in particles.replicate(args, draws).items():
                put("posterior_predictive", name, value, ["draw", *self._site_dims(name, draws.model_sites[name])])
        if self.groups & {"prior", "prior_predictive"}:
            for name, site in particles.prior(args, num).items():
                group = "prior_predictive" if was_observed(site) else "prior"
                put(group, name, aligned(site, plate), ["draw", *self._site_dims(name, site)])
        put("sample_stats", "log_weight", draws.log_weights, ["draw", plate.name])
        # weights and observations are needed for k-hat and for telling the covariates
        return {k: v for k, v in found.items() if k[0] in self.groups | {"sample_stats", "observed_data"}}

    def _fixed(self, args: Args, drawn: dict[Key, Tensor], observed: dict[Key, Tensor]) -> dict[Key, Tensor]:
        """What does not vary over draws: k-hat, and the arguments that are not observed."""
        plate, index = self.particles.plate.name, self.particles.fixed.index
        found = {("sample_stats", "khat"): pareto_khat(drawn["sample_stats", "log_weight"].double())}
        self.dims["sample_stats", "khat"] = [plate]
        rows = len(found["sample_stats", "khat"])
        for name, value in zip(argument_names(self.particles.pair.model, len(args)), args, strict=True):
            if not isinstance(value, Tensor) or not value.dim():
                continue
            value = (value if index is None else value[index.to(value.device)]).cpu()
            if len(value) != rows or any(torch.equal(value, v) for v in observed.values() if v.shape == value.shape):
                continue
            found["constant_data", name] = value
            self.dims["constant_data", name] = [plate, *(f"{name}_dim_{i}" for i in range(value.dim() - 1))]
        return found

    def _plates(self, site: Message) -> list[str]:
        """Names of the plates that hold a site, the data plate first."""
        frames = sorted(plates(site), key=lambda plate: plate.dim)
        first = self.particles.plate.name
        return [first, *(f.name for f in frames if f.name not in (first, "_particles"))]

    def _site_dims(self, name: str, site: Message) -> list[str]:
        number = len(site["fn"].event_shape)
        given = list(self.event_names.get(name, [f"{name}_dim_{i}" for i in range(number)]))
        if len(given) != number:
            raise ValueError(f"dims[{name!r}] names {len(given)} dimensions {given}, but its events have {number}.")
        dims = [*self._plates(site), *given]
        if name in dims or len({*dims, "chain", "draw"}) != len(dims) + 2:
            raise ValueError(
                f"The dimensions {dims} of the site {name!r} must have different names, none of them the site's own, "
                "'chain' or 'draw': rename the site or the plate, or pass other names in dims."
            )
        return dims


def argument_names(program: Program, number: int) -> list[str]:
    """What a program calls its first positional arguments."""
    program = unwrap(program)
    function = program.forward if isinstance(program, torch.nn.Module) else program
    try:
        names = list(inspect.signature(function).parameters)[:number]
    except (TypeError, ValueError):
        names = []
    return names + [f"argument_{i}" for i in range(len(names), number)]
