r"""The evidence lower bound with the path derivative alone.

    L = E_q[log p(x, z) - log q(z)],    dL/dphi ~ (d log p(x, z)/dz - d log q(z)/dz) dz/dphi

The total derivative of log q has a second part, the score function at fixed z, which is zero in expectation and is left
out. Where q is the exact posterior, log p(x, z) - log q(z) does not depend on z, so every single draw has gradient
zero: the estimator sticks the landing, while the usual one goes on to be noisy there.

References:
    | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
      (Roeder, Wu & Duvenaud, 2017)
    | https://arxiv.org/abs/1703.09194
"""

import math

from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vaes.programs import DENSITIES, Program, Role, log_density_sum, run

from .bound import Args, Bound
from .path_derivative import gated_trace


class StickingTheLanding_ELBO(Bound):
    """The bound of :class:`~pyro.infer.Trace_ELBO`, with the path derivative for the guide.

    Values, and gradients of parameters that the model alone uses, are those of ``Trace_ELBO`` draw by draw; the guide's
    gradient has the same expectation. It works for any guide with reparameterised draws and for the plates, scales and
    masks that ``Trace_ELBO`` takes. A flow's density is evaluated through its inverse rather than from its cache.

    Arguments:
        num_particles: Draws over which the bound is averaged.
        vectorize_particles: Whether the programs run once, broadcasting over a leading dimension of particles.
        max_plate_nesting: Batch dimensions that the programs use; found by a run of both if they are vectorised.

    Raises:
        ValueError: ``num_particles`` is below 1; at a call, a site of the guide is not reparameterised or has a given
            value, or the guide lacks a latent site of the model.

    Example:
        >>> import torch
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> StickingTheLanding_ELBO().differentiable_loss(vae.model, vae.guide, torch.zeros(4, 3)).shape
        torch.Size([])
    """

    def __init__(
        self, num_particles: int = 1, *, vectorize_particles: bool = False, max_plate_nesting: float = math.inf
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, but got {num_particles}.")
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting
        )

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-L, averaged over the particles, with the path derivative for the guide."""
        if self.vectorize_particles:
            if self.max_plate_nesting == math.inf:
                self._guess_max_plate_nesting(model, guide, args, {})
            model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
        runs = 1 if self.vectorize_particles else self.num_particles
        first, *rest = [self._loss(model, guide, args) for _ in range(runs)]
        return sum(rest, start=first) / self.num_particles

    def _loss(self, model: Program, guide: Program, args: Args) -> Tensor:
        guide_trace, gates = gated_trace(guide, args, type(self).__name__)
        drawn = prune_subsample_sites(guide_trace)
        self._refuse_score_function(drawn)

        model_trace = prune_subsample_sites(run(model, args, against=guide_trace))
        self._refuse_missing(guide_trace, model_trace)

        log_q = log_density_sum(drawn, DENSITIES)
        if isinstance(log_q, Tensor):
            log_q = log_q.detach() + gates.path(log_q)
        objective = log_density_sum(drawn, Role.OBJECTIVE_ONLY)
        return log_q + objective - model_trace.log_prob_sum()
