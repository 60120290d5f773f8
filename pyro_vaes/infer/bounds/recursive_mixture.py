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

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vaes.distributions import log_weights
from pyro_vaes.infer.bounds.bound import Bound, Program, Seen, with_keywords
from pyro_vaes.infer.bounds.component_draws import Strata, find_mixture, run_strata
from pyro_vaes.infer.bounds.importance import DataPlate, find_data_plate

__all__ = ["RecursiveMixture_ELBO"]

Schedule = Literal["simultaneous", "sequential"]


class RecursiveMixture_ELBO(Bound):
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
        self._seen = Seen[tuple[DataPlate, int]]()

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """-L(Q_M), with the gradients of all blocks' objectives."""
        model, guide = with_keywords((model, guide), kwargs)
        strata = self._run(model, guide, args)
        value = -strata.bound(strata.log_alpha(), strata.per_datum(strata.mixture.log_prob(strata.points)))
        if not torch.is_grad_enabled():
            return value
        log_joint = strata.log_joint
        objectives = [
            self._components(strata, log_joint)[1],
            *(_weight(strata, log_joint, m) for m in range(1, strata.mixture.num_components)),
            _model(strata, log_joint),
        ]
        return _carry(value, -torch.stack(objectives).sum())

    def sub_losses(self, model: Program, guide: Program, *args: object) -> list[Callable[[], Tensor]]:
        """Each block's loss, to be called once the parameters of the one before have moved; the model's is last."""
        if self.schedule == "simultaneous":
            return super().sub_losses(model, guide, *args)
        _, num_components = self._look(model, guide, args)
        run = partial(self._run, model, guide, args)

        def component(m: int) -> Tensor:
            strata = run(indices=(m,))
            value, objective = self._components(strata, strata.log_joint)
            return _carry(-value, -objective)

        def weight(m: int) -> Tensor:
            strata = run(indices=range(m + 1))
            return -_weight(strata, strata.log_joint, m)

        def whole() -> Tensor:
            strata = run()
            value = -strata.bound(strata.log_alpha(), strata.per_datum(strata.mixture.log_prob(strata.points)))
            return _carry(value, -_model(strata, strata.log_joint))

        later = [partial(f, m) for m in range(1, num_components) for f in (component, weight)]
        return [partial(component, 0), *later, whole]

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """The loss; gradients of all blocks, or under the sequential schedule all sub-steps by ``optim``."""
        model, guide = with_keywords((model, guide), kwargs)
        if self.schedule == "simultaneous":
            return super().loss_and_grads(model, guide, *args)
        if self.optim is None:
            raise ValueError(
                "The sequential schedule takes several optimiser steps in one step of SVI. Pass it the same optimiser: "
                "RecursiveMixture_ELBO(schedule='sequential', optim=optim)? Or train with fit, which needs none."
            )
        loss = torch.zeros(())
        for sub_loss in self.sub_losses(model, guide, *args):
            # SVI must not capture the parameters: it would step all of them once more, moved or not
            with poutine.block(hide_types=["param"]), poutine.trace(param_only=True) as capture:
                loss = sub_loss()
            leaves = {site["value"].unconstrained() for site in capture.trace.nodes.values()}
            for leaf in leaves:
                leaf.grad = None
            loss.backward()
            self.optim({leaf for leaf in leaves if leaf.grad is not None})
            for leaf in leaves:
                leaf.grad = None
        return loss.item()

    def _look(self, model: Program, guide: Program, args: tuple[object, ...]) -> tuple[DataPlate, int]:
        """The data plate and the number of components."""

        def look() -> tuple[DataPlate, int]:
            num_components = find_mixture(guide, args, type(self).__name__).num_components
            return find_data_plate(model, guide, args), num_components

        return self._seen.of(model, guide, look=look)

    def _run(
        self, model: Program, guide: Program, args: tuple[object, ...], indices: range | tuple[int, ...] | None = None
    ) -> Strata:
        plate, _ = self._look(model, guide, args)
        return run_strata(
            model, guide, args, plate, indices=indices, detached=True, vectorize=self.vectorize_components
        )

    def _components(self, strata: Strata, log_joint: Tensor) -> tuple[Tensor, Tensor]:
        """The components' objectives, summed: the value, and a tensor with the gradient for their parameters alone.

        Everything but q_m's own density is a function of the draw z_m alone. Its gradient in z_m is taken at a leaf,
        which holds the model, the earlier components and the weights fixed, and enters as <gradient, z_m>.
        """
        rest, leaves, own = [log_joint.sum()], [strata.points], []
        draws = [strata.draws]
        values = [log_joint.detach().sum()]
        for row, m in enumerate(strata.indices):
            z, leaf = strata.draws[row : row + 1], strata.points[row : row + 1]  # (1, *B, *E)
            q, regularised = strata.mixture.components[m], m > 0 and (self.cap > 0 or self.entropy is not None)
            if regularised and self.num_kl_samples > 1:
                more = q.rsample(torch.Size([self.num_kl_samples - 1]))
                draws.append(more)
                leaves.append(more.detach().requires_grad_())
                z, leaf = torch.cat([z, more]), torch.cat([leaf, leaves[-1]])
            log_q = strata.weight * strata.per_datum(q.log_prob(z))  # (K, B)
            if not regularised:
                own.append(-log_q[0].sum())
                values.append(own[-1].detach())
                continue
            below = strata.weight * strata.per_datum(strata.mixture.level(m - 1).log_prob(leaf)).mean(0)  # (B,)
            if self.entropy is not None:
                rest.append(-below.sum())
                own.append(-self.entropy * log_q.mean(0).sum())
                values.append((rest[-1] + own[-1]).detach())
                continue
            divergence = (log_q.mean(0) - below).detach()
            cap = self.cap * strata.weight
            within = (divergence < cap).to(log_q.dtype)
            rest.append(-(within * below).sum())
            own.append((within * log_q.mean(0) - log_q[0]).sum())
            values.append(torch.minimum(divergence, cap).sum() - log_q[0].detach().sum())
        gradients = torch.autograd.grad(torch.stack(rest).sum(), leaves, retain_graph=True)
        through_draws = [(g * z).sum() for g, z in zip(gradients, draws, strict=True)]
        return torch.stack(values).sum(), torch.stack([*through_draws, *own]).sum()


def _weight(strata: Strata, log_joint: Tensor, m: int) -> Tensor:
    """The bound of Q_m as a function of the m-th weight alone."""
    with torch.no_grad():
        densities = strata.mixture.component_log_prob(strata.points).movedim(-1, 0)  # (M + 1, C, *B)
        densities = strata.per_datum(densities)[: m + 1, : m + 1]
    earlier = [a.detach() for a in strata.mixture.logits[: m - 1]]
    logits = strata.per_datum(torch.stack([*earlier, strata.mixture.logits[m - 1]]))  # (m, B)
    log_alpha = log_weights(logits.mT).mT  # (m + 1, B)
    log_q = torch.logsumexp(log_alpha.unsqueeze(1) + densities, dim=0)  # (m + 1, B)
    return (log_alpha.exp() * (log_joint[: m + 1].detach() - strata.weight * log_q)).sum()


def _model(strata: Strata, log_joint: Tensor) -> Tensor:
    """The bound of Q_M as a function of the model's parameters alone."""
    return (strata.log_alpha().detach().exp() * log_joint).sum()


def _carry(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, with the gradient of the surrogate."""
    return value.detach() + (surrogate - surrogate.detach())
