"""A fitted pair as ArviZ sees it: all groups, dimensions named by the plates.

Groups: posterior (latents from the guide), prior and prior_predictive (the model run forward), posterior_predictive
(replicates), observed_data, constant_data (further arguments), log_likelihood (per datum), and sample_stats with the
log importance weight of each draw and the Pareto k-hat of each datum. There is one chain, so R-hat means nothing here;
k-hat and the effective sample size of the weights say how good the guide is.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import arviz as az
import numpy as np
import torch
from pyro.poutine.runtime import Message
from torch import Tensor
from xarray import Dataset, DataTree

from pyro_vaes.diagnostics.likelihood import pareto_khat
from pyro_vaes.diagnostics.particles import Draws, Particles
from pyro_vaes.infer.bound import Program

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summary", "to_datatree", "to_inference_data"]

Groups = dict[str, dict[str, tuple[list[str], np.ndarray]]]


def to_datatree(
    model: Program,
    guide: Program,
    data: object,
    draws: int = 200,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[object]] | None = None,
    pointwise: bool = False,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
) -> DataTree:
    """Draw from a pair and collect everything into an ArviZ ``DataTree``.

    Draws are streamed to the CPU in chunks.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments for N data: a tensor, a tuple of tensors, a data set's part, or a loader.
        draws: Draws of the latents per datum.
        dims: Names of event dimensions by site, e.g. ``{"x": ["row", "column"]}``; ``{site}_dim_{i}`` by default.
        coords: Coordinate values by dimension.
        pointwise: Whether log_likelihood is per element of the observation (as LOO-PIT plots want it) rather than per
            datum with events summed.
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
    particles = Particles(
        model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed, pointwise=pointwise
    )
    collector = _Collector(particles, draws, dict(dims or {}), pointwise)
    given = dict(coords or {})
    tree = {}
    for group, variables in collector.collect().items():
        sizes = {d: n for names, array in variables.values() for d, n in zip(names, array.shape, strict=True)}
        axes = {d: given.get(d, np.arange(n)) for d, n in sizes.items()}
        tree[group] = Dataset(variables, coords=axes, attrs={"inference_library": "pyro", "sampling_method": "guide"})
    return DataTree.from_dict(tree)


def to_inference_data(model: Program, guide: Program, data: object, draws: int = 200, **options: object) -> object:
    """The same as an ``InferenceData``, for ArviZ 0.23 and earlier; options as for :func:`to_datatree`.

    Raises:
        ImportError: ArviZ 1 and later know only ``DataTree``.
    """
    if int(az.__version__.split(".")[0]) >= 1:
        raise ImportError(f"ArviZ {az.__version__} has no InferenceData: use to_datatree.")
    tree = to_datatree(model, guide, data, draws, **options)  # type: ignore[arg-type]
    return az.InferenceData(**{name: node.to_dataset() for name, node in tree.children.items()})


def summary(tree: DataTree, *, group: str = "posterior", datum: int | None = None) -> "pd.DataFrame":
    """ArviZ's table of means, deviations and intervals of the latents, without what needs several chains.

    Arguments:
        tree: From :func:`to_datatree`.
        group: ``"posterior"`` or ``"prior"``.
        datum: One datum only; by default the draws of all data are pooled, which shows the aggregate posterior. Pooled
            draws have the prior's spread whether or not a unit collapsed; look at single data for that.
    """
    dataset = tree[group].to_dataset()
    plate = next(d for d in next(iter(dataset.data_vars.values())).dims if d not in ("chain", "draw"))
    if datum is not None:
        dataset = dataset.isel({plate: datum})
    else:
        dataset = dataset.rename(draw="_draw").stack(draw=("_draw", plate), create_index=False)
        dataset = dataset.transpose("chain", "draw", ...)
    return az.summary(az.convert_to_dataset(dataset), kind="stats")


class _Collector:
    """Streams draws batch by batch into ``{group: {variable: (dimensions, array)}}``."""

    def __init__(
        self, particles: Particles, draws: int, dims: dict[str, Sequence[str]], pointwise: bool
    ) -> None:
        self.particles, self.draws, self.event_names, self.pointwise = particles, draws, dims, pointwise
        self.dims: dict[tuple[str, str], list[str]] = {}

    def collect(self) -> Groups:
        particles = self.particles
        batches = []
        for args in particles.rows():
            chunks = [self._chunk(args, k) for k in particles.chunks(self.draws)]
            batch = {key: torch.cat([c[key] for c in chunks]) for key in chunks[0]}
            batches.append(batch | self._fixed(args, batch))
        assert particles.plate is not None
        groups: Groups = {}
        for group, name in batches[0]:
            names = self.dims[group, name]
            sampled = names[:1] == ["draw"]
            array = torch.cat([b[group, name] for b in batches], dim=names.index(particles.plate.name)).numpy()
            groups.setdefault(group, {})[name] = (["chain", *names], array[None]) if sampled else (names, array)
        return groups

    def _chunk(self, args: tuple[object, ...], num: int) -> dict[tuple[str, str], Tensor]:
        """One pass of draws as ``{(group, variable): (draw, *plates, *event)}``."""
        particles = self.particles
        draws = particles.draw(args, num)
        found: dict[tuple[str, str], Tensor] = {}

        def put(group: str, name: str, value: Tensor, dims: list[str]) -> None:
            found[group, name] = value.cpu()
            self.dims[group, name] = ["draw", *dims]

        latents = draws.latents()
        for name, site in latents.items():
            put("posterior", name, site["value"], self._site_dims(name, site))
        for name, site in _observations(draws).items():
            event = site["log_prob"].dim() - 1 - len(_plates(site))
            put("log_likelihood", name, site["log_prob"], [*_plates(site), *self._event_dims(name, site)[:event]])
        for name, value in particles.replicate(args, draws).items():
            put("posterior_predictive", name, value, self._site_dims(name, draws.model_sites[name]))
        forward = [particles.prior(args) for _ in range(num)]
        for name, site in forward[0].items():
            group = "prior" if name in latents else "prior_predictive"
            put(group, name, torch.stack([f[name]["value"] for f in forward]), self._site_dims(name, site))
        assert particles.plate is not None
        put("sample_stats", "log_weight", draws.log_weights, [particles.plate.name])
        return found

    def _fixed(
        self, args: tuple[object, ...], batch: dict[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str], Tensor]:
        """What does not vary over draws: the observations, further arguments, and k-hat."""
        assert self.particles.plate is not None
        plate = self.particles.plate.name
        found = {("sample_stats", "khat"): pareto_khat(batch["sample_stats", "log_weight"].double())}
        self.dims["sample_stats", "khat"] = [plate]
        for name, site in _observations(self.particles.draw(args, 1)).items():
            found["observed_data", name] = site["value"][0].cpu()
            self.dims["observed_data", name] = self._site_dims(name, site)
        for position, value in enumerate(args[1:], start=1):
            if isinstance(value, Tensor) and value.dim() and len(value) == len(found["sample_stats", "khat"]):
                name = f"argument_{position}"
                found["constant_data", name] = value.cpu()
                self.dims["constant_data", name] = [plate, *(f"{name}_dim_{i}" for i in range(value.dim() - 1))]
        return found

    def _site_dims(self, name: str, site: Message) -> list[str]:
        return [*_plates(site), *self._event_dims(name, site)]

    def _event_dims(self, name: str, site: Message) -> list[str]:
        number = len(site["fn"].event_shape)
        given = list(self.event_names.get(name, [f"{name}_dim_{i}" for i in range(number)]))
        if len(given) != number:
            raise ValueError(f"dims[{name!r}] names {len(given)} dimensions {given}, but its events have {number}.")
        return given


def _observations(draws: Draws) -> dict[str, Message]:
    """Observed sites with data (``pyro.factor`` statements have none)."""
    return {n: s for n, s in draws.model_sites.items() if s["is_observed"] and type(s["fn"]).__name__ != "Unit"}


def _plates(site: Message) -> list[str]:
    frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != "_particles"]
    return [f.name for f in sorted(frames, key=lambda f: f.dim)]
