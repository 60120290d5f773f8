r"""The amortised Laplace guide: start at an encoder's mean, climb to the mode, take the curvature there.

    mu <- mu + a_t P(mu)⁻¹ d log p(x, mu) / d mu,    t = 0, .., T-1;    q(z | x) = N(mu_T, P(mu_T)⁻¹)

with P the Gauss-Newton matrix of -log p(x, z). Score and curvature come from the program itself, so any model whose
latents are continuous will do; the guide has no parameters but those of the network that it starts from.

That network learns through the updates, which the better they are the less depend on it: behind a full step of a linear
decoder nothing is left of mu_0, and behind a deeper one it drifts to where no update finds the mode. A term of the
objective alone brings it back, with mu_T and P held constant:

    + start_weight * log N(mu_T; mu_0, P⁻¹) = - start_weight * KL( q ‖ N(mu_0, P⁻¹) ) + constant

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from collections.abc import Callable
from typing import Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vaes.distributions import PrecisionNormal
from pyro_vaes.nn import as_posterior
from pyro_vaes.programs import is_dry_run, mark_statements, marks, outside_the_run

from ..amortized import AmortizedGuide
from ..given import Given, Rows, as_given, differentiable
from ..joint import Joint
from ..latents import Latents, SiteDraw
from ..plate_shapes import Placement
from .curvature import Curvature
from .newton import factorise, improving, newton_step
from .schedules import decaying

LONGEST_STEP = 2.0  # in logarithms or log-odds: a factor of 7


class AmortizedLaplace(AmortizedGuide):
    """A full-covariance Gaussian around the mode of p(z | x), for any Pyro program with continuous latents in a plate.

    All latent sites are one unconstrained vector. Train it with :class:`~pyro.infer.Trace_ELBO` or
    ``ImportanceWeighted_ELBO``: log q cancels against log p draw by draw, which an analytic KL would spoil. Handlers
    around the guide are seen: a KL weight of beta (``scale_latents``) sharpens or flattens the posterior as the scaled
    bound wants; give the guide the model without that weight.

    Arguments:
        model: The program, such as ``vae.model``.
        start: Network called as an encoder is, for the mean that the steps start from: it returns a tensor with shape
            ``(B, numel)``, a pair ``(loc, scale)`` or a distribution, of which only the mean is used; or another
            amortised guide.
        steps: Number T of updates, 0 or more.
        schedule: Step size a_t for t = 0, .., T-1: the authors' by default, or ``geometric``, or any function. The step
            of a constrained site is at most 2 long in its unconstrained space before it is multiplied by a_t.
        halvings: How often an update may be halved: per datum the largest of log p(x, mu + a_t step), of that with half
            the step and so on, and of log p(x, mu) itself decides. None takes every update as it is.
        path: ``"generic"`` pushes tangents through the program; ``"fast"`` uses the closed form for chains of Linear
            and ReLU layers with Gaussian noise or Bernoulli observations; ``"auto"`` uses that where it applies and
            agrees with the generic one at first use.
        chunk_size: Latent directions pushed through the program at once on the generic path, to bound memory.
        s_jitter: For Bernoulli observations, p is clipped to [s_jitter, 1 - s_jitter] in p (1 - p) + s_jitter, as in
            the authors' code (1e-5); 0 is exact.
        detach_updates: Whether gradients pass over the updates as if they were constants: less time and memory, and a
            start that is trained as the mean itself.
        start_weight: Weight of the term that trains the start towards the mode, 0 (as the authors have it) or more. It
            enters every bound with the value 0, for its gradient. 1 goes with ``schedule=geometric``, whose updates
            then reach the mode in two to four. A component of a mixture leaves it out.
        reuse_precision: Whether the covariance is that of the last step rather than of the mode: one Jacobian less.
        fallback: ``"hessian"`` for observations without an entry in the Fisher registry; None refuses them.

    Raises:
        ValueError: An argument is out of its range; or, at the first call, the program has discrete latents, latents
            outside the data plate, batch norm in training mode or dropout.
        NotImplementedError: An observation's family is not registered.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood
        >>> vae = VAE(MLP(64, [32], 8), MLP(4, [32], 64), GaussianLikelihood(0.3), latent_dim=4)
        >>> guide = AmortizedLaplace(vae.model, start=MLP(64, [32], 4), steps=2)
        >>> guide.posterior(torch.randn(5, 64)).covariance_matrix.shape
        torch.Size([5, 4, 4])
    """

    def __init__(
        self,
        model: Callable[..., object],
        start: nn.Module,
        steps: int = 4,
        *,
        schedule: Callable[[int], float] = decaying,
        halvings: int | None = None,
        path: Literal["auto", "generic", "fast"] = "auto",
        chunk_size: int | None = None,
        s_jitter: float = 0.0,
        detach_updates: bool = False,
        start_weight: float = 0.0,
        reuse_precision: bool = False,
        fallback: Literal["hessian"] | None = None,
    ) -> None:
        super().__init__(model, start)

        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps is the number of updates, 0 or more, but got {steps!r}.")
        if not start_weight >= 0 or start_weight == float("inf"):
            raise ValueError(f"start_weight is a finite weight, 0 or more, but got {start_weight!r}; 1.0?")
        if halvings is not None and (not isinstance(halvings, int) or halvings < 0):
            raise ValueError(f"halvings is a number of halvings, 0 or more, or None, but got {halvings!r}.")
        if not callable(schedule):
            raise ValueError(f"schedule maps t to a step size, but got {schedule!r}; lambda t: {schedule!r}?")

        self.steps, self.schedule, self.halvings = steps, schedule, halvings
        self.detach_updates, self.start_weight = detach_updates, start_weight
        self.reuse_precision = reuse_precision
        self._curvature = Curvature(path, chunk_size, s_jitter, fallback)

    def draws(self, given: Given, latents: Latents, placement: Placement) -> dict[str, SiteDraw]:
        with outside_the_run():
            start, posterior = self._start_and_end(given)

        q = given.laid_out(posterior, placement)
        assert isinstance(q, PrecisionNormal)
        if self.start_weight:
            self._train_start(start.reshape(q.loc.shape), q, latents)
        return self.site_draws(q, latents)

    def site_draws(self, q: TorchDistribution, latents: Latents) -> dict[str, SiteDraw]:
        return latents.draws(q, analytic_kl=False)

    def _train_start(self, start: Tensor, q: PrecisionNormal, latents: Latents) -> None:
        """The term of the start, with the value 0; q's side of a bound is subtracted."""
        reached = PrecisionNormal(start, q.chol_precision.detach()).log_prob(q.loc.detach())
        name = "_".join(["", *(site.name for site in latents.sites), "start"])
        with mark_statements(marks(objective_only=True)):
            pyro.factor(name, self.start_weight * (reached.detach() - reached), has_rsample=True)

    def encode(self, *args: object, rows: Rows = None, **kwargs: object) -> PrecisionNormal:
        """The Laplace posterior of these rows of the arguments; must be called outside the data plate."""
        return self._start_and_end(as_given(args, kwargs, rows))[1]

    def _start_and_end(self, given: Given) -> tuple[Tensor, PrecisionNormal]:
        latents = self.latents_of(given)
        with differentiable(given.with_rows(latents)) as known:
            mu = known.call(self.mean_at_start)
            joint = Joint(self.model, latents, known)
            # half precision cannot hold condition numbers of 1e4
            with torch.autocast(mu.device.type, enabled=False):
                mu = mu.to(torch.promote_types(mu.dtype, torch.float32))
                return mu, self._refine(mu, joint)

    def mean_at_start(self, *args: object, rows: Rows = None, **kwargs: object) -> Tensor:
        """mu_0, the mean that the updates start from, with shape ``(B, numel)``."""
        given = as_given(args, kwargs, rows)
        latents, output = self.latents_of(given), self._encoded(given)
        mean = output if isinstance(output, Tensor) else as_posterior(output, "start").mean
        mean = given.in_rows(mean)
        if mean.dim() != 2 or mean.shape[-1] != latents.numel:
            raise ValueError(
                f"The network to start from returns means of shape {tuple(mean.shape)}, but the model's latent sites "
                f"need {latents.numel} numbers per datum: {latents.describe()}. Give its last layer that many outputs?"
            )
        return mean

    def _refine(self, start: Tensor, joint: Joint) -> PrecisionNormal:
        """The updates from the start, and the Gaussian where they end."""
        if is_dry_run():  # of which only the shapes are looked at
            identity = start.new_ones(start.shape[-1]).diag()
            return PrecisionNormal(start, identity.expand(*start.shape, -1))

        linearise_at = self._curvature.of(joint, start)

        mu, factor = start, None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_updates):
            for t in range(self.steps):
                # only the precision that is reused becomes a part of q, with its gradient
                constant = not self.reuse_precision or t < self.steps - 1
                local = linearise_at(mu, constant=constant)
                factor = factorise(local.precision)
                step = self._bounded(newton_step(local, factor), joint.latents)
                step = self.schedule(t) * step
                if self.halvings is not None:
                    step = step * improving(joint, mu, step, self.halvings)
                mu = mu + step

        if self.detach_updates:
            mu = start + (mu - start).detach()
        if factor is None or not self.reuse_precision:
            factor = factorise(linearise_at(mu, score=False).precision)
        return PrecisionNormal(mu, factor)

    def _bounded(self, step: Tensor, latents: Latents) -> Tensor:
        """Shorten steps that would move a constrained site by more than LONGEST_STEP in its unconstrained space.

        There, densities such as the gamma's are flat on one side and exponential on the other: Newton's step from the
        flat side is off by orders of magnitude. Models whose sites are all real are never affected.
        """
        parts = zip(latents.sites, latents.split(step), strict=True)
        lengths = [part.norm(dim=-1, keepdim=True) for site, part in parts if not site.is_real]
        if not lengths:
            return step

        longest = torch.cat(lengths, -1).amax(-1, keepdim=True)
        return step * (LONGEST_STEP / longest.clamp(min=LONGEST_STEP))
