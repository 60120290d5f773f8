"""Recursive mixture estimation: each part of a mixture guide, and the model, climbs an objective of its own.

    component 0     ELBO(q_0)
    component m     ELBO(q_m) + min(C, KL(q_m || Q_{m-1}))         Q_{m-1} and the model held fixed
    weight m        ELBO((1 - eps_m) Q_{m-1} + eps_m q_m)          all but eps_m held fixed
    model           ELBO(Q_M)                                      the guide held fixed

The component's objective is the functional gradient of the bound: along Q + eps (q - Q) the bound rises at eps = 0 by
E_q[log p(x, z) - log Q(z)] up to a constant, and that is ELBO(q) + KL(q || Q). There the entropy of q cancels, so
without the cap C q collapses to a point or runs off to infinity.

References:
    | Recursive Inference for Variational Autoencoders (Kim & Pavlovic, 2020)
    | https://arxiv.org/abs/2011.08544
    | Boosting Variational Inference (Guo et al., 2016), for the entropy regulariser
    | https://arxiv.org/abs/1611.05559
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vaes.distributions import log_weights
from pyro_vaes.programs import Program, bind_keywords

from .bound import Loss
from .component_draws import ComponentDraws, MixtureBound

Schedule = Literal["simultaneous", "sequential"]


class RecursiveMixture_ELBO(MixtureBound):
    """The bound of the full mixture, whose gradients are those of the blocks' own objectives.

    The value is that of :class:`~pyro_vaes.infer.StratifiedMixture_ELBO`. With the simultaneous schedule all blocks
    move by one backward pass and one pass of the model over all components: :class:`~pyro.infer.SVI` and
    :func:`~pyro_vaes.infer.fit` drive it like any bound. With the sequential one, the published algorithm, every step
    takes 2M + 2 sub-steps on its batch, component 0, component 1, weight 1, .., component M, weight M, model, each at
    the parameters that the one before has left; what a sub-step does not train has no gradient, so momentum cannot
    move it.

    A component that reads the model's own weights (a Laplace posterior) passes its gradient on to them.

    Arguments:
        cap: C in nats per datum, the bound on each component's KL term: 0 leaves the term out (independent encoders),
            infinity leaves it unbounded, which diverges. The default is meant for log-likelihoods of hundreds of nats
            (images with 784 pixels); where they are tens of nats choose a few nats, else components are driven off.
        num_kl_samples: Draws of q_m over which the KL estimate is averaged before it is capped, datum by datum.
        schedule: ``"simultaneous"`` or ``"sequential"``.
        entropy: nu; if given, components maximise E_q[log p(x, z) - log Q(z)] + nu H(q), the objective of boosted
            variational inference, and the cap is not used.
        optim: The optimiser given to ``SVI``, which the sequential schedule steps by itself; ``fit`` needs none.
        vectorize_components: Whether the model runs on all components at once, broadcasting over a leading dimension.

    Raises:
        ValueError: An argument is out of range; at the first call, the guide does not sample from one
            :class:`~pyro_vaes.distributions.RecursiveMixture`.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyro_vaes.guides import AmortizedMixture
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead, WeightHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> guide = AmortizedMixture(vae.model, [NormalHead(3, 2), NormalHead(3, 2)], [WeightHead(3)])
        >>> svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 1e-3}), RecursiveMixture_ELBO())
        >>> svi.step(torch.zeros(4, 3)) > 0
        True
    """

    @property
    def one_loss(self) -> bool:
        """Whether all blocks move at once."""
        return self.schedule == "simultaneous"

    def __init__(
        self,
        cap: float = 500.0,
        num_kl_samples: int = 1,
        schedule: Schedule = "simultaneous",
        *,
        entropy: float | None = None,
        optim: PyroOptim | None = None,
        vectorize_components: bool = True,
    ) -> None:
        if not cap >= 0:
            raise ValueError(f"The cap of the KL term is in nats and cannot be negative, but got cap={cap}.")
        if num_kl_samples < 1:
            raise ValueError(f"num_kl_samples must be at least 1, but got {num_kl_samples}.")
        if schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {get_args(Schedule)}, but got {schedule!r}.")
        if entropy is not None and not entropy > 0:
            raise ValueError(f"entropy is the weight of a component's entropy and must be positive, but got {entropy}.")
        super().__init__()
        self.cap, self.num_kl_samples, self.schedule = cap, num_kl_samples, schedule
        self.entropy, self.optim, self.vectorize_components = entropy, optim, vectorize_components

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-L(Q_M), with the gradients of all blocks' objectives."""
        draws = self._draw(model, guide, args, detached=True)
        value = -draws.bound(draws.log_alpha)
        if not torch.is_grad_enabled():
            return value

        objectives = [self._components(draws)]
        for m in range(1, draws.mixture.num_components):
            objectives.append(_weight_objective(draws, m))
        objectives.append(_model_objective(draws))
        return _carry(value, -torch.stack(objectives).sum())

    def sub_losses(self, model: Program, guide: Program, *args: object) -> list[Loss]:
        """Each block's loss, to be called once the parameters of the one before have moved.

        The model's is the last one.
        """
        if self.one_loss:
            return super().sub_losses(model, guide, *args)

        draw = partial(self._draw, model, guide, args, detached=True)

        def component(m: int) -> Tensor:
            return -self._components(draw(indices=(m,)))

        def weight(m: int) -> Tensor:
            return -_weight_objective(draw(indices=range(m + 1)), m)

        def whole() -> Tensor:
            draws = draw()
            value = -draws.bound(draws.log_alpha)
            return _carry(value, -_model_objective(draws))

        losses: list[Loss] = [partial(component, 0)]
        _, num_components = self._mixture(model, guide, args)
        for m in range(1, num_components):
            losses += [partial(component, m), partial(weight, m)]
        return [*losses, whole]

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """The loss as a number, with the gradients of all blocks.

        Under the sequential schedule all sub-steps are taken by ``optim`` instead.
        """
        if self.one_loss:
            return super().loss_and_grads(model, guide, *args, **kwargs)
        if self.optim is None:
            raise ValueError(
                "The sequential schedule takes several optimiser steps in one step of SVI. "
                "Pass it the same optimiser: RecursiveMixture_ELBO(schedule='sequential', "
                "optim=optim)? Or train with fit, which needs none."
            )

        model, guide = bind_keywords(model, kwargs), bind_keywords(guide, kwargs)
        loss = torch.zeros(())
        for sub_loss in self.sub_losses(model, guide, *args):
            loss = _sub_step(sub_loss, self.optim)
        return loss.item()

    def _components(self, draws: ComponentDraws) -> Tensor:
        """The objectives of the components that were drawn from, summed.

        Everything but q_m's own density is a function of the draw z_m alone. Its gradient in
        z_m is taken at a leaf, which holds the model, the earlier components and the weights
        fixed, and enters as <gradient, z_m>.
        """
        parts = [self._component(draws, row) for row in range(len(draws.indices))]

        at_leaves = draws.log_joint.sum()
        leaves, points = [draws.points], [draws.draws]
        for part in parts:
            at_leaves = at_leaves + part.at_leaves
            leaves += part.leaves
            points += part.draws
        gradients = torch.autograd.grad(at_leaves, leaves, retain_graph=True)

        own = [part.own for part in parts]
        for gradient, point in zip(gradients, points, strict=True):
            own.append((gradient * point).sum())

        values = [draws.log_joint.detach().sum(), *(part.value for part in parts)]
        return _carry(torch.stack(values).sum(), torch.stack(own).sum())

    def _component(self, draws: ComponentDraws, row: int) -> "_Component":
        """What the objective of one component has beside E log p(x, z_m)."""
        m = draws.indices[row]
        q = draws.mixture.components[m]
        z, leaf = draws.draws[row : row + 1], draws.points[row : row + 1]  # (1, *B, *E)

        if m == 0 or (self.cap == 0 and self.entropy is None):
            entropy = -(draws.weight * draws.per_datum(q.log_prob(z)))[0].sum()
            return _Component(own=entropy, value=entropy.detach())

        more, more_leaves = [], []
        if self.num_kl_samples > 1:
            more = [q.rsample(torch.Size([self.num_kl_samples - 1]))]
            more_leaves = [more[0].detach().requires_grad_()]
        z, leaf = torch.cat([z, *more]), torch.cat([leaf, *more_leaves])

        log_q = draws.weight * draws.per_datum(q.log_prob(z))  # (K, B)
        below = draws.mixture.level(m - 1).log_prob(leaf)  # log Q_{m-1}
        below = draws.weight * draws.per_datum(below).mean(0)  # (B,)

        if self.entropy is not None:
            own, at_leaves = -self.entropy * log_q.mean(0).sum(), -below.sum()
            value = (at_leaves + own).detach()
            return _Component(own, value, at_leaves, more_leaves, more)

        # min(C, KL(q_m || Q_{m-1})), datum by datum, beside the entropy of the draw
        divergence = (log_q.mean(0) - below).detach()
        cap = self.cap * draws.weight
        within = (divergence < cap).to(log_q.dtype)
        own = (within * log_q.mean(0) - log_q[0]).sum()
        value = torch.minimum(divergence, cap).sum() - log_q[0].detach().sum()
        return _Component(own, value, -(within * below).sum(), more_leaves, more)


class _Component(NamedTuple):
    """A component's objective without E log p(x, z_m).

    Attributes:
        own: What depends on the parameters of q_m directly.
        value: The whole number, without a gradient.
        at_leaves: What depends on the draws alone, at leaves of the same numbers.
        leaves: Leaves of draws that this component has beside the shared ones.
        draws: These draws, with gradients.
    """

    own: Tensor
    value: Tensor
    at_leaves: Tensor | float = 0.0
    leaves: Sequence[Tensor] = ()
    draws: Sequence[Tensor] = ()


def _sub_step(sub_loss: Loss, optim: PyroOptim) -> Tensor:
    """Compute one loss and let the optimiser step the parameters that it reaches."""
    # SVI must not capture the parameters: it would step all of them once more, moved or not
    with poutine.block(hide_types=["param"]), poutine.trace(param_only=True) as capture:
        loss = sub_loss()
    leaves = {site["value"].unconstrained() for site in capture.trace.nodes.values()}

    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    optim({leaf for leaf in leaves if leaf.grad is not None})
    for leaf in leaves:
        leaf.grad = None

    return loss


def _weight_objective(draws: ComponentDraws, m: int) -> Tensor:
    """The bound of Q_m as a function of the m-th weight alone."""
    with torch.no_grad():
        densities = draws.mixture.component_log_prob(draws.points)
        densities = draws.per_datum(densities.movedim(-1, 0))  # (M + 1, C, B)
        densities = densities[: m + 1, : m + 1]

    logits = [a.detach() for a in draws.mixture.logits[: m - 1]]
    logits.append(draws.mixture.logits[m - 1])
    stacked = draws.per_datum(torch.stack(logits))  # (m, B)
    log_alpha = log_weights(stacked.mT).mT  # (m + 1, B)

    log_q = torch.logsumexp(log_alpha.unsqueeze(1) + densities, dim=0)  # (m + 1, B)
    log_ratio = draws.log_joint[: m + 1].detach() - draws.weight * log_q
    return (log_alpha.exp() * log_ratio).sum()


def _model_objective(draws: ComponentDraws) -> Tensor:
    """The bound of Q_M as a function of the model's parameters alone."""
    return (draws.log_alpha.detach().exp() * draws.log_joint).sum()


def _carry(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, with the gradient of the surrogate."""
    return value.detach() + (surrogate - surrogate.detach())
