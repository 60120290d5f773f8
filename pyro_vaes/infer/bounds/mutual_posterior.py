r"""Mutual posterior divergence: keep the posteriors of different data apart, and evenly so.

For the ordered pairs i != j of a batch of n data and unit (dimension) d of the latents,

    P_ijd     = KL(q(z_d | x_i) || q(z_d | x_j))
    MPD_d     = mean_ij P_ijd
    L_diverse = sum_d softplus(-MPD_d)              (as released)   or   sum_d mean_ij softplus(-P_ijd)   (as printed)
    L_smooth  = std_ij KL(q(z | x_i) || q(z | x_j))
    loss / n  = -ELBO / n + eta L_diverse + gamma L_smooth

L_diverse lies in (0, D ln 2], where D ln 2 says that all posteriors are equal: eta can pay eta D ln 2 nats against the
bound and no more, and fades once the posteriors are apart. By Jensen the released form is at most the printed one.

The divergences of a batch have a heavy tail, and nothing in L_diverse bounds it: P_ijd holds the ratio of two variances
and a squared distance in units of the second one, so a single sharp posterior j is far from everybody, and where log
variances spread with standard deviation s the mean ratio is exp(s²) beside a median of 1. L_smooth is what such a tail
costs. MPD is a U-statistic, unbiased for every n; L_smooth and the printed form are noisy below n = 50. For the n data
themselves the mutual information is at most the mean over all n² pairs: I_q(x; z) <= (n - 1) / n sum_d MPD_d where q
factorises.

References:
    | MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019)
    | https://arxiv.org/abs/1901.01498
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vaes.ops import off_diagonal
from pyro_vaes.programs import DRAWN, Findings, Program, SiteRecorder, Sites, find_plate

from .bound import Args, Bound
from .facts import facts_of
from .global_batch import is_shared
from .posterior_pairs import Pairs, pairs_of
from .posteriors import PosteriorSite, find_posteriors
from .recorded import Recorded

Diverse = Literal["mean_then_softplus", "pairwise"]
T = TypeVar("T")


@dataclass(frozen=True)
class PosteriorPairs:
    """The divergences between the posteriors of all ordered pairs of n data, over one or several sites; nats."""

    parts: tuple[Pairs, ...]

    @property
    def mean(self) -> Tensor:
        """MPD_d of each unit, those of all sites in turn, ``(D,)``."""
        return torch.cat([p.mean() for p in self.parts])

    @property
    def total(self) -> Tensor:
        """KL(q(z | x_i) || q(z | x_j)), row i and column j, ``(n, n)``."""
        return torch.stack([p.total() for p in self.parts]).sum(0)

    def diversity(self, diverse: Diverse = "mean_then_softplus") -> Tensor:
        """L_diverse, in (0, D ln 2]; the larger, the more alike the posteriors are."""
        if diverse == "mean_then_softplus":
            return softplus(-self.mean).sum()
        return torch.cat([p.mean_softplus() for p in self.parts]).sum()

    def smoothness(self) -> Tensor:
        """L_smooth, the unbiased standard deviation over the n (n - 1) pairs."""
        return off_diagonal(self.total).std()  # whose gradient, unlike that of a root, is 0 where all pairs are equal


class MutualPosterior_ELBO(Bound):
    """Any bound, with terms that keep the posteriors of a batch apart (``eta``) and evenly spread (``gamma``).

    The terms are computed from the distributions that the guide hands to the wrapped bound in the same run. All latent
    sites count that the guide draws given the datum alone; a guide that draws a site given another is refused, unless
    ``sites`` names sites that it does not. Sites on a support count before their (fixed, invertible) maps onto it,
    which changes no divergence. Distributions without a closed KL are compared by draws. A cluster that labels make a
    point for some data is infinitely far from others and refused as well: name the other sites.

    The loss stays a sum over the data: the terms are multiplied by the batch's number of rows, or by the number of data
    that a subsampling plate stands for. Scales (KL weights, ``poutine.scale``) do not touch them; a batch with a single
    row has no pair and is left with the bound alone. In a training step of :func:`~pyro_vaes.infer.fit` on several
    processes the pairs are those of the global batch; an evaluation compares each process's own rows.

    Both terms can be gamed by the scale of z, so look at the KL and the likelihood beside them.

    Arguments:
        base: The bound, any with a differentiable loss; ``Trace_ELBO()`` by default.
        eta: Weight of L_diverse, 0 or more; may be changed between steps.
        gamma: Weight of L_smooth, 0 or more; likewise.
        diverse: ``"mean_then_softplus"`` as in the authors' code, or ``"pairwise"`` as printed in the paper, which
            takes a softplus of every pair and dimension.
        sites: The guide's sites whose posteriors are compared; all by default. ``"_a_b"`` is the joint site of a guide
            that draws ``"a"`` and ``"b"`` together.
        num_samples: Draws for each datum (of a mixture: from each component) where there is no closed KL. Their noise
            averages out over the pairs in MPD, and raises L_smooth and the printed form of L_diverse.

    Raises:
        ValueError: An argument is out of range, or the bound has no differentiable loss or steps by itself; at the
            first call, the guide's sites have no posteriors to compare.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> bound = MutualPosterior_ELBO(eta=1.0, gamma=0.5)
        >>> bound.differentiable_loss(vae.model, vae.guide, torch.randn(4, 3)).shape
        torch.Size([])
        >>> bool(bound.pairs(vae.guide, torch.zeros(4, 3)).total.any())  # equal data, equal posteriors
        False
    """

    def __init__(
        self,
        base: ELBO | None = None,
        *,
        eta: float = 0.0,
        gamma: float = 0.0,
        diverse: Diverse = "mean_then_softplus",
        sites: Sequence[str] | None = None,
        num_samples: int = 1,
    ) -> None:
        base = base or Trace_ELBO()
        if not hasattr(base, "differentiable_loss"):
            raise ValueError(
                f"base must be a bound with a differentiable loss, to which the terms are added, but "
                f"{type(base).__name__} has none; Trace_ELBO() or ImportanceWeighted_ELBO(k)?"
            )
        if not facts_of(base).one_loss:
            raise ValueError(
                "base takes several optimiser steps for each batch (schedule='sequential'), and the terms belong to "
                "one loss. Use schedule='simultaneous'."
            )

        for name, weight in (("eta", eta), ("gamma", gamma)):
            if not weight >= 0:
                raise ValueError(f"{name} is the weight of a penalty and cannot be negative, but got {weight}.")
        if diverse not in get_args(Diverse):
            raise ValueError(f"diverse must be one of {get_args(Diverse)}, but got {diverse!r}.")
        if isinstance(sites, str) or num_samples < 1:
            raise ValueError(
                f"sites is a list of names and num_samples at least 1, but got sites={sites!r} and "
                f"num_samples={num_samples}; sites=['z']?"
            )

        super().__init__(num_particles=base.num_particles, max_plate_nesting=base.max_plate_nesting)
        self.base, self.eta, self.gamma, self.diverse = base, eta, gamma, diverse
        self.sites, self.num_samples = None if sites is None else tuple(sites), num_samples
        self._guides = Recorded(SiteRecorder(DRAWN))
        self._sites = Findings[tuple[PosteriorSite, ...]]()

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """The base's loss plus n (eta L_diverse + gamma L_smooth)."""
        loss, terms = self._run(self.base.differentiable_loss, model, guide, args)
        return loss if terms is None else loss + terms.to(loss.dtype)

    def negative_value(self, model: Program, guide: Program, *args: object) -> float:
        loss, terms = self._run(self.base.loss, model, guide, args)
        return loss if terms is None else loss + terms.item()

    def _run(self, bound: Callable[..., T], model: Program, guide: Program, args: Args) -> tuple[T, Tensor | None]:
        """A function of the base's, and the terms for the posteriors that it has met.

        The terms are None where there are none.
        """
        if not (self.eta > 0 or self.gamma > 0):
            return bound(model, guide, *args), None

        sites = self._posteriors(guide, args)
        loss = bound(model, self._guides(guide), *args)

        found = self._guides.recorder.take_all()
        first = found[sites[0].name]
        plate = find_plate(first, sites[0].plate)
        if plate.size < 2 and not is_shared():
            return loss, None

        terms = []
        with torch.autocast(first["value"].device.type, enabled=False):
            pairs = self._pairs(found, sites)
            if self.eta > 0:
                terms.append(self.eta * pairs.diversity(self.diverse))
            if self.gamma > 0:
                terms.append(self.gamma * pairs.smoothness())

        return loss, plate.num_data * torch.stack(terms).sum()

    def pairs(self, guide: Program, *args: object) -> PosteriorPairs:
        """Run the guide once and compare the posteriors of all pairs of rows of its arguments."""
        sites = self._posteriors(guide, args)
        self._guides(guide)(*args)
        found = self._guides.recorder.take_all()
        if find_plate(found[sites[0].name], sites[0].plate).size < 2:
            raise ValueError("One row has no pair: give the guide at least two rows.")
        return self._pairs(found, sites)

    def _posteriors(self, guide: Program, args: Args) -> tuple[PosteriorSite, ...]:
        return self._sites.of((guide,), args, lambda: find_posteriors(guide, args, self.sites))

    def _pairs(self, found: Sites, sites: Sequence[PosteriorSite]) -> PosteriorPairs:
        parts = [pairs_of(s.rows(found[s.name]), self.num_samples, s.name) for s in sites]
        return PosteriorPairs(tuple(parts))
