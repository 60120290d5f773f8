"""Draws from every component of the guide's mixture, put through both programs in one pass.

The guide is any program that samples its latents from a :class:`~pyro_vaes.distributions.RecursiveMixture` at one site.
That site gets the value z_m ~ q_m for each component m instead of a draw of the mixture, so whatever else the guide
computes from it (maps onto constrained supports) is computed by the guide itself, and the model is replayed against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vaes.distributions import RecursiveMixture
from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.infer.bounds.bound import Program
from pyro_vaes.infer.bounds.importance import DataPlate, per_datum_terms
from pyro_vaes.programs.pair import preserve_rng

__all__ = ["Strata", "find_mixture", "run_strata"]

Args = tuple[object, ...]


@dataclass(frozen=True)
class Strata:
    """The densities of both programs at draws from C of the mixture's components, for B data.

    Attributes:
        mixture: Q, batch shape with B elements.
        indices: Which components were drawn from, C of them.
        draws: The draws, with gradients for the components' parameters, ``(C, *batch_shape, *event_shape)``.
        points: The values that the programs saw: the draws, or leaves of their own with the same numbers.
        model_terms: log p of the model's sites, scaled and masked, each ``(C, B)``.
        guide_terms: log q of the guide's sites but the mixture, likewise.
        weight: Scale and mask of the mixture's site, ``(B,)``: the weight of every log q of the mixture.
    """

    mixture: RecursiveMixture
    indices: tuple[int, ...]
    draws: Tensor
    points: Tensor
    model_terms: list[Tensor]
    guide_terms: list[Tensor]
    weight: Tensor

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z_m) in the space where the mixture lives, scaled and masked, ``(C, B)``."""
        first, *rest = self.model_terms
        return sum(rest, start=first) - sum(self.guide_terms, start=torch.zeros_like(first))

    def per_datum(self, values: Tensor) -> Tensor:
        """Values ``(..., *batch_shape)`` with the shape ``(..., B)``."""
        return values.reshape((*values.shape[: values.dim() - len(self.mixture.batch_shape)], -1))

    def log_alpha(self) -> Tensor:
        """log alpha_m of all components, ``(M + 1, B)``."""
        return self.per_datum(self.mixture.log_alpha.movedim(-1, 0))

    def bound(self, log_alpha: Tensor, log_q: Tensor) -> Tensor:
        """sum_n sum_m alpha_m [log p(x_n, z_m) - log Q(z_m)] for weights and densities ``(C, B)``.

        Site by site, in the order in which :class:`~pyro.infer.Trace_ELBO` sums, so that a single component gives
        its numbers to the last bit.
        """
        alpha = log_alpha.exp()
        model = sum(((alpha * term).sum() for term in self.model_terms), start=torch.zeros_like(alpha[0, 0]))
        guide = sum(((alpha * term).sum() for term in self.guide_terms), start=(alpha * self.weight * log_q).sum())
        return model - guide


class _Stratify(Messenger):
    """Give the guide's mixture site draws from the components as its value; remember what was given."""

    def __init__(self, plate: DataPlate, indices: Sequence[int] | None, num_particles: int, detached: bool) -> None:
        super().__init__()
        self.plate, self.indices, self.num_particles, self.detached = plate, indices, num_particles, detached
        self.name: str | None = None

    def _pyro_sample(self, msg: Message) -> None:
        fn = msg["fn"]
        if not isinstance(fn, RecursiveMixture) or msg["value"] is not None:
            return
        self.name, self.mixture = msg["name"], fn
        self.chosen = tuple(range(fn.num_components)) if self.indices is None else tuple(self.indices)
        logits = fn.logits[: len(self.chosen) - 1]  # of no matter: every component is drawn from
        drawn = RecursiveMixture([fn.components[i] for i in self.chosen], logits, validate_args=False)
        draws = drawn.stratified_rsample(torch.Size([self.num_particles])).flatten(0, 1)  # (C, *batch, *event)
        self.draws = self.points = draws
        if self.detached:
            self.points = draws.detach().requires_grad_(torch.is_grad_enabled())
        inner = (1,) * (self.plate.depth - len(fn.batch_shape))  # the model's plates between strata and data
        msg["value"] = self.points.reshape(draws.shape[:1] + inner + draws.shape[1:])


def find_mixture(guide: Program, args: Args, bound: str) -> RecursiveMixture:
    """Run the guide once, aside, and find its one mixture.

    Raises:
        ValueError: The guide samples from no mixture, from several, or from one that holds more than the data plate.
    """
    with poutine.block(), torch.no_grad(), preserve_rng():
        sites = poutine.trace(guide).get_trace(*args).nodes.items()
    mixtures = {n: s["fn"] for n, s in sites if s["type"] == "sample" and isinstance(s["fn"], RecursiveMixture)}
    if len(mixtures) != 1:
        found = {n: type(s["fn"]).__name__ for n, s in sites if s["type"] == "sample" and n not in mixtures}
        raise UsageError(
            f"{bound} needs a guide that samples its latents from one RecursiveMixture, as AmortizedMixture does, but "
            f"this one has {f'several: {sorted(mixtures)}' if mixtures else f'none among its sites: {found}'}.",
            use_bound(),
            Cure("guide", "mixture", words="a mixture guide"),
        )
    name, mixture = next(iter(mixtures.items()))
    if sum(size > 1 for size in mixture.batch_shape) > 1:
        raise ValueError(
            f"{bound} needs the mixture at {name!r} in the data plate alone, but its batch shape is "
            f"{tuple(mixture.batch_shape)}. Make the other plates event dimensions of the components with .to_event?"
        )
    return mixture


def run_strata(
    model: Program,
    guide: Program,
    args: Args,
    plate: DataPlate,
    *,
    indices: Sequence[int] | None = None,
    num_particles: int = 1,
    detached: bool = False,
    vectorize: bool = True,
) -> Strata:
    """Draw from the components of the guide's mixture and run both programs at the draws.

    Arguments:
        model: The model; it must broadcast over a leading dimension of components, unless ``vectorize`` is off.
        guide: The guide.
        args: Their arguments.
        plate: The data plate.
        indices: The components to draw from; all by default.
        num_particles: Draws from each component.
        detached: Whether the programs get the draws as a leaf, so that gradients can be routed.
        vectorize: Whether the model is run on all components at once, or on one after the other.
    """
    with _Stratify(plate, indices, num_particles, detached) as strata:
        guide_trace = prune_subsample_sites(poutine.trace(guide).get_trace(*args))
    assert strata.name is not None
    site = guide_trace.nodes[strata.name]
    weight = scale_and_mask(torch.ones_like(strata.mixture.log_alpha[..., 0]), site["scale"], site["mask"])
    size = len(strata.draws)
    if vectorize:

        def stratified(*args: object) -> object:
            with pyro.plate("_strata", size, dim=-plate.depth - 1):
                return model(*args)

        model_terms = _model_terms(stratified, guide_trace, args, plate, particles=True)
    else:
        each = [_model_terms(model, _slice(guide_trace, c, plate), args, plate, particles=False) for c in range(size)]
        model_terms = [torch.stack(terms) for terms in zip(*each, strict=True)]
    guide_trace.remove_node(strata.name)
    guide_terms = per_datum_terms(guide_trace, plate.dim, particles=True, scaled=True)
    chosen = tuple(i for i in strata.chosen for _ in range(num_particles))
    return Strata(strata.mixture, chosen, strata.draws, strata.points, model_terms, guide_terms, weight.reshape(-1))


def _model_terms(model: Program, trace: Trace, args: Args, plate: DataPlate, *, particles: bool) -> list[Tensor]:
    model_trace = prune_subsample_sites(poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args))
    return per_datum_terms(model_trace, plate.dim, particles=particles, scaled=True)


def _slice(trace: Trace, index: int, plate: DataPlate) -> Trace:
    """The guide's trace at one of its draws; what does not depend on the mixture is the same for all."""
    one = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            value = site["value"]
            by_draw = value.dim() - len(site["fn"].event_shape) > plate.depth
            one.add_node(name, **{**site, "value": value[index] if by_draw else value})
    return one
