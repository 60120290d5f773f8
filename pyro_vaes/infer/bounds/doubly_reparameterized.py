r"""The importance-weighted bound with the doubly reparameterised gradient.

    L_K = E log 1/K sum_k w_k,    v_k = w_k / sum_j w_j
    encoder    dL_K/dphi   ~ sum_k v_k² (d log w_k / dz_k) (dz_k / dphi)
    decoder    dL_K/dtheta ~ sum_k v_k d log p_theta(x, z_k) / dtheta

with d log w / dz at fixed parameters. The encoder's gradient of the bound itself contains the score function of q with
weights v_k, whose noise outgrows the signal as K rises (Rainforth et al., 2018); reparameterising that score a second
time gives v_k² instead, and the signal-to-noise ratio rises with K.

References:
    | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker, Lawson, Gu & Maddison, 2019)
    | https://arxiv.org/abs/1810.04152
    | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
    | https://arxiv.org/abs/1802.04537
"""

import math
from functools import partial

import torch
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vaes.programs import (
    DRAWN,
    DataPlate,
    Program,
    Sites,
    objective_terms,
    over_particles,
    per_datum_log_prob,
    run,
    sites,
)

from .importance_weighted import ImportanceWeighted_ELBO
from .path_derivative import gated_trace


class DReG_ELBO(ImportanceWeighted_ELBO):
    """The bound of :class:`~pyro_vaes.infer.ImportanceWeighted_ELBO`, with the doubly reparameterised gradient.

    Values, and gradients of parameters that the model alone uses, are those of ``ImportanceWeighted_ELBO`` draw by
    draw; the guide's gradient has the same expectation. With K = 1 it is
    :class:`~pyro_vaes.infer.StickingTheLanding_ELBO`.

    Arguments:
        num_particles: K.

    Raises:
        ValueError: ``num_particles`` is below 1; at a call, the pair has no data plate, or a site of the guide is not
            reparameterised or has a given value.

    Example:
        >>> import torch
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> DReG_ELBO(5).differentiable_loss(vae.model, vae.guide, torch.zeros(4, 3)).shape
        torch.Size([])
    """

    plain_draws = False

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-sum_n log 1/K sum_k w_nk, with the doubly reparameterised gradient for the guide."""
        plate, num = self._plate(model, guide, args), self.num_particles
        many_models, many_guides = (over_particles(p, num, plate) for p in (model, guide))

        guide_trace, gates = gated_trace(many_guides, args, type(self).__name__)
        drawn = prune_subsample_sites(guide_trace)
        self._refuse_score_function(drawn)

        # tensors of their own, whose gradients are those of the model alone
        handed_over, draws = guide_trace.copy(), {}
        for name, site in sites(guide_trace, DRAWN).items():
            own: Message = {**site, "value": site["value"].view_as(site["value"])}
            handed_over.nodes[name] = own
            if own["value"].requires_grad:
                draws[name] = own
        model_trace = prune_subsample_sites(run(many_models, args, against=handed_over))

        log_q = per_datum_log_prob(drawn, plate.dim, particles=True)  # (K, B)
        log_p = per_datum_log_prob(model_trace, plate.dim, particles=True)
        log_w = log_p - log_q.detach()
        v = log_w.detach().softmax(0)

        whole = _whole_gradients(model_trace, guide_trace, draws, v, plate)
        # by v_k what log p sends back to z_k, which has one v_k already
        for site in draws.values():
            site["value"].register_hook(partial(torch.mul, _aligned(v, site, plate)))

        bound = log_w.logsumexp(0) - math.log(num)
        bound = (bound + objective_terms(model_trace, drawn, plate.dim)).sum()
        path = gates.path(log_q, v.square())
        return -plate.scale(model_trace) * (bound + whole - path)


def _aligned(factor: Tensor, site: Message, plate: DataPlate) -> Tensor:
    """A factor ``(K, B)`` that broadcasts against the draws of a site."""
    shape = [1] * (plate.depth + 1)  # batch dimensions, the particles' one first
    shape[0], shape[plate.dim] = factor.shape
    return factor.reshape(*shape, *[1] * len(site["fn"].event_shape))


def _whole_gradients(model_trace: Trace, guide_trace: Trace, draws: Sites, factor: Tensor, plate: DataPlate) -> Tensor:
    """A number equal to 0 whose gradient is the share that a factor takes from the model's terms of the objective."""
    terms = objective_terms(model_trace, Trace(), plate.dim)
    zero = factor.new_zeros(())
    if not isinstance(terms, Tensor) or not terms.requires_grad or not draws:
        return zero

    values = [site["value"] for site in draws.values()]
    gradients = torch.autograd.grad(terms.sum(), values, retain_graph=True, allow_unused=True)
    for (name, site), gradient in zip(draws.items(), gradients, strict=True):
        if gradient is not None:
            missing = (1 - _aligned(factor, site, plate)) * gradient
            zero = zero + (missing * guide_trace.nodes[name]["value"]).sum()
    return zero - zero.detach()
