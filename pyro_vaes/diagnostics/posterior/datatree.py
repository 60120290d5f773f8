"""A fitted pair as ArviZ sees it: all groups, dimensions named by the plates.

Groups: posterior (latents from the guide), prior and prior_predictive (the model run forward), posterior_predictive
(replicates), observed_data, constant_data (further arguments), log_likelihood (per datum), and sample_stats with the
log importance weight of each draw and the Pareto k-hat of each datum. There is one chain, so R-hat means nothing here;
k-hat and the effective sample size of the weights say how good the guide is.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import arviz as az
import numpy as np
import torch
from pyro.poutine.runtime import Message
from torch import Tensor
from xarray import Dataset, DataTree, Variable

from pyro_vaes.programs import Program, argument_names, plates, was_observed

from ..importance_weights import pareto_khat
from ..particles import Particles
from ..sites import Args, aligned, scored
from ..summaries import require_positive

if TYPE_CHECKING:
    import pandas as pd


Variables = dict[tuple[str, str], Variable]  # by group and name

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
    num_samples: int = 200,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[object]] | None = None,
    pointwise: bool = False,
    groups: Collection[str] = GROUPS,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
    unit: str | None = None,
) -> DataTree:
    """Draw from a pair and collect everything into an ArviZ ``DataTree``.

    Draws are streamed to the CPU in chunks. The predictive groups are as large as the data times the draws: leave them
    out of ``groups`` for many draws of many images.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments for N data: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_samples: Draws of the latents per datum.
        dims: Names of event dimensions by site, e.g. ``{"x": ["row", "column"]}``; ``{site}_dim_{i}`` by default.
        coords: Coordinate values by dimension.
        pointwise: Whether log_likelihood is per element of the observation (as LOO-PIT plots want it) rather than per
            datum with events summed.
        groups: Names of the groups wanted.
        batch_size: Rows per pass.
        chunk_size: Draws per pass.
        seed: Seed of the draws.
        unit: Name of the plate whose rows are the data, where there are several.

    Returns:
        A tree that ``tree.to_netcdf(path)`` writes and ``xarray.open_datatree(path)`` reads.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> vae = VAE(Chain(MLP(16, [8], 8), NormalHead(8, 2)), MLP(2, [8], 16), BernoulliLikelihood(), latent_dim=2)
        >>> tree = to_datatree(vae.model, vae.guide, torch.zeros(5, 16), num_samples=10)
        >>> dict(tree.posterior.sizes)
        {'chain': 1, 'draw': 10, 'data': 5, 'z_dim_0': 2}
    """
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"groups must be among {list(GROUPS)}, but got {unknown}.")
    require_positive(num_samples=num_samples)

    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        chunk_size=chunk_size,
        seed=seed,
        unit=unit,
    )

    collector = _Collector(particles, num_samples, dims or {}, set(groups), pointwise)
    collected = collector.collect()

    attributes = {"inference_library": "pyro", "data_plate": particles.plate.name}
    tree = {}
    for group in sorted(collected, key=GROUPS.index):
        axes = _axes(collected[group], coords or {})
        tree[group] = Dataset(collected[group], coords=axes, attrs=attributes)
    return DataTree.from_dict(tree)


def _axes(variables: dict[str, Variable], coords: Mapping[str, Sequence[object]]) -> dict[Hashable, object]:
    """Coordinate values of all dimensions of a group."""
    sizes: dict[Hashable, int] = {}
    for variable in variables.values():
        sizes |= variable.sizes

    wrong = {d: len(values) for d, values in coords.items() if d in sizes and len(values) != sizes[d]}
    if wrong:
        raise ValueError(f"coords have lengths {wrong}, but these dimensions have sizes {sizes}.")
    return {d: coords.get(str(d), np.arange(size)) for d, size in sizes.items()}


def to_inference_data(tree: DataTree) -> object:
    """The groups of a tree as an ``InferenceData``, which the functions of ArviZ 0.23 and earlier take.

    Arguments:
        tree: From :func:`to_datatree`.

    Raises:
        ImportError: ArviZ 1 and later know only ``DataTree``.
    """
    if int(az.__version__.split(".")[0]) >= 1:
        raise ImportError(f"ArviZ {az.__version__} has no InferenceData: its functions take the tree itself.")
    found = az.InferenceData()
    found.add_groups({name: node.to_dataset() for name, node in tree.children.items()})
    return found


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


@dataclass
class _Collector:
    """Streams draws batch by batch into ``{group: {variable: values}}``, dimensions named.

    The first dimension of what was drawn is "draw".
    """

    particles: Particles
    num_samples: int
    event_names: Mapping[str, Sequence[str]]
    groups: set[str]
    pointwise: bool
    names: set[str] = field(default_factory=set)

    def collect(self) -> dict[str, dict[str, Variable]]:
        batches = self.particles.for_each_pass(self._batch)
        unknown = sorted(self.event_names.keys() - self.names)
        if unknown:
            raise ValueError(f"dims names the sites {unknown}, but there are only {sorted(self.names)}.")

        plate = self.particles.plate.name
        counted = slice(self.particles.fixed.full_size)
        groups: dict[str, dict[str, Variable]] = {}
        for key in list(batches[0]):
            group, name = key
            if group in self.groups and all(key in batch for batch in batches):
                parts = [batch.pop(key) for batch in batches]
                whole = Variable.concat(parts, plate).isel({plate: counted})
                if whole.dims[0] == "draw":
                    whole = Variable(["chain", *whole.dims], whole.values[None])
                groups.setdefault(group, {})[name] = whole
        return groups

    def _batch(self, args: Args) -> Variables:
        """All variables of one batch: chunks of draws, joined, and what does not vary over these."""
        chunks = [self._chunk(args, k) for k in self.particles.chunks(self.num_samples)]

        found = chunks[0]
        for key, first in list(found.items()):
            if first.dims[0] == "draw":
                found[key] = Variable.concat([chunk.pop(key) for chunk in chunks], "draw")

        log_weights = torch.from_numpy(found["sample_stats", "log_weight"].values)
        khat = pareto_khat(log_weights.double()).numpy()
        found["sample_stats", "khat"] = Variable([self.particles.plate.name], khat)

        found |= self._covariates(args, found, len(khat))
        self.names |= {name for _, name in found}
        return found

    def _chunk(self, args: Args, num: int) -> Variables:
        """One pass of draws ``(draw, *plates, *event)``, and what was observed."""
        particles, plate = self.particles, self.particles.plate
        draws = particles.draw(args, num, read=partial(scored, pointwise=self.pointwise))
        found: Variables = {}

        def put(group: str, name: str, value: Tensor, dims: list[str]) -> None:
            self.names.add(name)
            # weights and observations are needed for k-hat and for telling the covariates
            if group in self.groups | {"sample_stats", "observed_data"}:
                found[group, name] = Variable(dims, value.cpu().numpy())

        for name, site in draws.latents().items():
            put("posterior", name, aligned(site, plate), ["draw", *self._site_dims(name, site)])

        for name, site in draws.observations().items():
            dims = self._site_dims(name, site)
            put("observed_data", name, aligned(site, plate)[0], dims)
            log_prob = aligned(site, plate, key="log_prob")  # some event dimensions may be summed out
            put("log_likelihood", name, log_prob, ["draw", *dims[: log_prob.dim() - 1]])

        if "posterior_predictive" in self.groups:
            for name, value in particles.replicate(args, draws).items():
                put("posterior_predictive", name, value, ["draw", *self._site_dims(name, draws.model_sites[name])])

        if self.groups & {"prior", "prior_predictive"}:
            for name, site in particles.prior(args, num).items():
                group = "prior_predictive" if was_observed(site) else "prior"
                put(group, name, aligned(site, plate), ["draw", *self._site_dims(name, site)])

        put("sample_stats", "log_weight", draws.log_weights, ["draw", plate.name])
        return found

    def _covariates(self, args: Args, found: Variables, rows: int) -> Variables:
        """The arguments with a row for each datum that are not observed."""
        plate, index = self.particles.plate.name, self.particles.fixed.index
        observed = [v.values for (group, _), v in found.items() if group == "observed_data"]

        covariates: Variables = {}
        for name, value in zip(argument_names(self.particles.model, len(args)), args, strict=True):
            if not isinstance(value, Tensor) or not value.dim():
                continue
            if index is not None:
                value = value[index.to(value.device)]

            values = value.cpu().numpy()
            if len(values) == rows and not any(np.array_equal(values, other) for other in observed):
                dims = [plate, *(f"{name}_dim_{i}" for i in range(values.ndim - 1))]
                covariates["constant_data", name] = Variable(dims, values)
        return covariates

    def _site_dims(self, name: str, site: Message) -> list[str]:
        number = len(site["fn"].event_shape)
        given = list(self.event_names.get(name, [f"{name}_dim_{i}" for i in range(number)]))
        if len(given) != number:
            raise ValueError(f"dims[{name!r}] names {len(given)} dimensions {given}, but its events have {number}.")

        first = self.particles.plate.name
        around = sorted(plates(site), key=lambda plate: plate.dim)
        others = [plate.name for plate in around if plate.name not in (first, "_particles")]
        dims = [first, *others, *given]
        if name in dims or len({*dims, "chain", "draw"}) != len(dims) + 2:
            raise ValueError(
                f"The dimensions {dims} of the site {name!r} must have different names, none of them the site's own, "
                "'chain' or 'draw': rename the site or the plate, or pass other names in dims."
            )
        return dims
