"""A posterior with parameters of its own, one set for each site: for global latents."""

from collections.abc import Mapping
from typing import Literal

import torch
from pyro.distributions import Delta, MultivariateNormal, TorchDistribution
from torch import Tensor, nn

from pyro_vaes.programs import preserve_rng

from .base import Rule
from .site import KnownSite, Site

Kind = Literal["normal", "delta", "multivariate"]
KINDS = ("normal", "delta", "multivariate")
INITIAL_SCALE = 0.1
NUM_DRAWS = 15  # of the prior, whose median the parameters start from


class Free(Rule):
    r"""The posterior with parameters of its own, over any support.

        q(w) = N(loc, diag scale²),    N(loc, L Lᵀ)    or a point,    pushed onto the
        support of w

    A site inside plates has parameters for each of their rows; a plate that draws some
    rows uses theirs. The parameters start at a draw's median of the prior with scale
    0.1, and are made when the guide first sees the program, or when weights are loaded.

    Arguments:
        kind: ``"normal"``: every element by itself; ``"multivariate"``: a full
            covariance over the elements of a site; ``"delta"``: a point, whose
            log-density counts as 0 (maximum a posteriori).

    Raises:
        ValueError: The kind is none of these; or, at the first call, the site is
            discrete.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_vaes.guides import ComposedGuide, Free
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Poisson(w), obs=x)
        >>> guide = ComposedGuide(model, {"w": Free()})
        >>> guide(torch.ones(5))["w"].shape, sum(p.numel() for p in guide.parameters())
        (torch.Size([]), 2)
    """

    def __init__(self, kind: Kind = "normal") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, but got {kind!r}.")
        self.kind = kind
        self.sites = nn.ModuleDict()

    def prepare(self, known: KnownSite) -> None:
        if known.reals is None:
            raise ValueError(
                f"The latent site {known.name!r} is discrete "
                f"({type(known.fn).__name__}), but Free is for continuous ones. Use "
                "AmortizedCategorical(network), FromPrior() or Enumerated()?"
            )
        key = _key(known.name)
        if key in self.sites:
            return

        reals, batch = known.reals, _full_shape(known)
        with torch.no_grad(), preserve_rng():
            draws = known.fn.sample(torch.Size([NUM_DRAWS]))
            loc = reals.unconstrain(draws).median(0).values
        loc = torch.where(loc.isfinite(), loc, 0.0)
        loc = _first_rows(loc, batch)

        parameters = {"loc": loc.clone()}
        if self.kind == "normal":
            parameters["log_scale"] = torch.full_like(loc, INITIAL_SCALE).log()
        elif self.kind == "multivariate":
            diagonal = torch.full_like(loc, INITIAL_SCALE).log()
            # its diagonal as logarithms
            parameters["scale_tril"] = torch.diag_embed(diagonal)
        self.sites[key] = _Parameters(parameters)

    def forward(self, site: Site) -> TorchDistribution:
        parameters = self.sites[_key(site.name)]
        assert isinstance(parameters, _Parameters)
        loc = _rows(parameters.loc, site, 1)
        reals = site.reals

        if self.kind == "delta":
            value, _ = reals.constrain(loc)
            return Delta(value, event_dim=len(site.event_shape))
        if self.kind == "normal":
            return reals.normal(loc, _rows(parameters.log_scale, site, 1).exp())

        raw = _rows(parameters.scale_tril, site, 2)
        diagonal = raw.diagonal(dim1=-2, dim2=-1).exp()
        scale_tril = raw.tril(-1) + torch.diag_embed(diagonal)
        return reals.push(MultivariateNormal(loc, scale_tril=scale_tril))

    def prepare_state(self, state: Mapping[str, Tensor]) -> None:
        """Make the parameters of sites that a saved state has and this rule has not
        seen."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            folder, _, rest = name.partition(".")
            if folder == "sites":
                key, _, parameter = rest.rpartition(".")
                found.setdefault(key, {})[parameter] = torch.zeros_like(value)

        for key, parameters in found.items():
            if key not in self.sites:
                self.sites[key] = _Parameters(parameters)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        *args: object,
    ) -> None:
        own = {}
        for name, value in state_dict.items():
            if name.startswith(prefix):
                own[name.removeprefix(prefix)] = value

        self.prepare_state(own)
        load = super()._load_from_state_dict
        load(state_dict, prefix, *args)  # type: ignore[arg-type]


class _Parameters(nn.Module):
    """The parameters of one site: ``(*plates, numel)``, and ``(*plates, numel,
    numel)``."""

    loc: Tensor
    log_scale: Tensor
    scale_tril: Tensor

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value))


def _key(name: str) -> str:
    """The name of a site as that of a module, which must not have a dot."""
    return name.replace(".", "/")


def _full_shape(known: KnownSite) -> torch.Size:
    """The batch shape of a site with all rows of its plates."""
    shape = list(known.fn.batch_shape)
    for plate in known.plates:
        shape[plate.dim] = plate.num_data
    return torch.Size(shape)


def _first_rows(t: Tensor, batch: torch.Size) -> Tensor:
    """As many rows as all the plates have: those that there are, again and again."""
    for dim, size in enumerate(batch):
        if t.shape[dim] != size:
            index = torch.arange(size, device=t.device) % t.shape[dim]
            t = t.index_select(dim, index)
    return t


def _rows(parameter: Tensor, site: Site, event_dim: int) -> Tensor:
    """The rows of a parameter that the plates around a site hold."""
    for plate in site.plates:
        dim = parameter.dim() - event_dim + plate.dim
        num_rows = parameter.shape[dim]
        rows = site.rows_of(plate.name)

        if plate.subsamples and rows is not None and num_rows == plate.num_data:
            parameter = parameter.index_select(dim, rows)
        elif num_rows != plate.size:
            raise ValueError(
                f"The site {site.name!r} has free parameters for {num_rows} rows of "
                f"the plate {plate.name!r}, which now holds {plate.size} of "
                f"{plate.num_data}. Give the plate its full size, "
                f"pyro.plate({plate.name!r}, N, subsample_size=...), or use "
                "Amortized(network)?"
            )
    return parameter
