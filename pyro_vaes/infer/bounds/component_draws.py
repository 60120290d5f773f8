"""Draws from every component of the guide's mixture, put through both programs in one pass.

The guide is any program that samples its latents from a
:class:`~pyro_vaes.distributions.RecursiveMixture` at one site. That site gets the value
z_m ~ q_m for each component m instead of a draw of the mixture, so whatever else the guide
computes from it (maps onto constrained supports) is computed by the guide itself, and the
model is replayed against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vaes.distributions import RecursiveMixture
from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import (
    DataPlate,
    Program,
    broadcasts,
    data_plate,
    dry_run_pair,
    over_particles,
    per_datum_terms,
    run,
    sites,
)

from .bound import Args, Bound, found_once


@dataclass(frozen=True)
class ComponentDraws:
    """The densities of both programs at draws from C of the mixture's components, for B data.

    Attributes:
        mixture: Q, batch shape with B elements.
        indices: Which components were drawn from, each as often as the others.
        draws: The draws, with gradients for the components' parameters, with shape
            ``(C, *batch_shape, *event_shape)``.
        points: The values that the programs met: the draws, or leaves of their own with the
            same numbers.
        model_terms: log p of the model's sites, scaled and masked, each ``(C, B)``.
        guide_terms: log q of the guide's sites but the mixture, likewise.
        weight: Scale and mask of the mixture's site, ``(B,)``: the weight of every log q of
            the mixture.
    """

    mixture: RecursiveMixture
    indices: Sequence[int]
    draws: Tensor
    points: Tensor
    model_terms: list[Tensor]
    guide_terms: list[Tensor]
    weight: Tensor

    @cached_property
    def log_joint(self) -> Tensor:
        """log p(x, z_m) in the space where the mixture lives, scaled and masked, ``(C, B)``."""
        first, *others = self.model_terms
        log_p = sum(others, start=first)
        return log_p - sum(self.guide_terms, start=torch.zeros_like(first))

    def per_datum(self, values: Tensor) -> Tensor:
        """Values ``(..., *batch_shape)`` with the shape ``(..., B)``."""
        leading = values.shape[: values.dim() - len(self.mixture.batch_shape)]
        return values.reshape((*leading, -1))

    @property
    def log_alpha(self) -> Tensor:
        """log alpha_m of all components, ``(M + 1, B)``."""
        return self.per_datum(self.mixture.log_alpha.movedim(-1, 0))

    def bound(self, log_alpha: Tensor) -> Tensor:
        """sum_n sum_m alpha_m [log p(x_n, z_m) - log Q(z_m)].

        Site by site, in the order in which :class:`~pyro.infer.Trace_ELBO` sums, so that a
        single component gives its numbers to the last bit.

        Arguments:
            log_alpha: Logarithms of the weights, ``(C, B)``.
        """
        alpha = log_alpha.exp()

        log_p = torch.zeros_like(alpha[0, 0])
        for term in self.model_terms:
            log_p = log_p + (alpha * term).sum()

        log_q = self.per_datum(self.mixture.log_prob(self.points))
        total_q = (alpha * self.weight * log_q).sum()
        for term in self.guide_terms:
            total_q = total_q + (alpha * term).sum()

        return log_p - total_q


@dataclass(eq=False)
class _DrawComponents(Messenger):
    """Give the guide's mixture site draws from the components as its value.

    Arguments:
        plate: The data plate.
        indices: Which components to draw from; None for all.
        num_particles: Draws from each component.
        detached: Whether the programs meet leaves of their own instead of the draws.

    Attributes:
        name, mixture, chosen, draws, points: What was met and given in the latest run.
    """

    plate: DataPlate
    indices: Sequence[int] | None
    num_particles: int
    detached: bool

    def _pyro_sample(self, msg: Message) -> None:
        fn = msg["fn"]
        if not isinstance(fn, RecursiveMixture) or msg["value"] is not None:
            return

        self.name, self.mixture = str(msg["name"]), fn
        self.chosen = self.indices or range(fn.num_components)

        # the weights have no effect here: we draw from every component of this mixture
        some = [fn.components[i] for i in self.chosen]
        logits = fn.logits[: len(self.chosen) - 1]
        mixture = RecursiveMixture(some, logits, validate_args=False)
        draws = mixture.stratified_rsample(torch.Size([self.num_particles]))
        self.draws = draws.flatten(0, 1)  # (C, *batch, *event)

        self.points = self.draws
        if self.detached:
            leaf = self.draws.detach()
            self.points = leaf.requires_grad_(torch.is_grad_enabled())

        # the model's plates lie between components and data
        inner = (1,) * (self.plate.depth - len(fn.batch_shape))
        shape = self.draws.shape
        msg["value"] = self.points.reshape(shape[:1] + inner + shape[1:])


class MixtureBound(Bound):
    """What the bounds of a mixture guide share: draws from the mixture's components.

    Attributes:
        vectorize_components: Whether the model runs on all draws at once where it
            broadcasts over a leading dimension; else on one after the other.
    """

    plain_draws = False
    vectorize_components: bool

    @found_once
    def _mixture(self, model: Program, guide: Program, args: Args) -> tuple[DataPlate, int]:
        """The data plate, and the number of components of the guide's one mixture.

        Raises:
            ValueError: The guide samples from no mixture, from several, or from one that
                holds more than the data plate.
        """
        traces = dry_run_pair(model, guide, args)
        mixtures, others = {}, {}
        for name, site in sites(traces.guide).items():
            if isinstance(site["fn"], RecursiveMixture):
                mixtures[name] = site["fn"]
            else:
                others[name] = type(site["fn"]).__name__

        bound = type(self).__name__
        if len(mixtures) != 1:
            found = f"none among its sites: {others}"
            if mixtures:
                found = f"several: {sorted(mixtures)}"
            raise UsageError(
                f"{bound} needs a guide that samples its latents from one RecursiveMixture, as "
                f"AmortizedMixture does, but this one has {found}.",
                use_bound(),
                Cure("guide", "mixture", words="a mixture guide"),
            )

        ((name, mixture),) = mixtures.items()
        if sum(size > 1 for size in mixture.batch_shape) > 1:
            raise ValueError(
                f"{bound} needs the mixture at {name!r} in the data plate alone, but its batch "
                f"shape is {tuple(mixture.batch_shape)}. Make the other plates event dimensions "
                "of the components with .to_event?"
            )
        plate = data_plate(traces)
        may_broadcast = self.vectorize_components and broadcasts(
            model,
            guide,
            args,
            plate,
            guide_too=False,
        )
        return replace(plate, broadcasts=may_broadcast), mixture.num_components

    def _draw(
        self,
        model: Program,
        guide: Program,
        args: Args,
        *,
        indices: Sequence[int] | None = None,
        num_particles: int = 1,
        detached: bool = False,
    ) -> ComponentDraws:
        """Draw from the components of the guide's mixture and run both programs at the draws.

        Arguments:
            model, guide: The pair.
            args: Their arguments.
            indices: The components to draw from; all by default.
            num_particles: Draws from each component.
            detached: Whether the programs get the draws as a leaf, so that gradients can be
                routed.
        """
        plate, _ = self._mixture(model, guide, args)
        with _DrawComponents(plate, indices, num_particles, detached) as drawn:
            guide_trace = prune_subsample_sites(run(guide, args))

        def model_terms(program: Program, against: Trace, *, particles: bool) -> list[Tensor]:
            trace = prune_subsample_sites(run(program, args, against=against))
            return per_datum_terms(trace, plate.dim, particles=particles, scaled=True)

        size = len(drawn.draws)
        if plate.broadcasts:
            at_all_draws = over_particles(model, size, plate)
            log_p = model_terms(at_all_draws, guide_trace, particles=True)
        else:
            each = []
            for index in range(size):
                at_one = _at_draw(guide_trace, index, plate)
                each.append(model_terms(model, at_one, particles=False))
            log_p = list(map(torch.stack, zip(*each, strict=True)))

        site = guide_trace.nodes[drawn.name]
        ones = torch.ones_like(drawn.mixture.log_alpha[..., 0])
        weight = scale_and_mask(ones, site["scale"], site["mask"])
        guide_trace.remove_node(drawn.name)

        return ComponentDraws(
            mixture=drawn.mixture,
            indices=drawn.chosen,
            draws=drawn.draws,
            points=drawn.points,
            model_terms=log_p,
            guide_terms=per_datum_terms(guide_trace, plate.dim, particles=True, scaled=True),
            weight=weight.reshape(-1),
        )


def _at_draw(trace: Trace, index: int, plate: DataPlate) -> Trace:
    """The guide's trace at one of its draws.

    What does not depend on the mixture is the same for all draws.
    """
    one = trace.copy()
    for name, site in sites(trace).items():
        value = site["value"]
        if value.dim() - len(site["fn"].event_shape) > plate.depth:
            one.nodes[name] = {**site, "value": value[index]}
    return one
