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
from dataclasses import dataclass
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
    is_latent,
    objective_terms,
    over_particles,
    per_datum_log_prob,
    run,
    sites,
)

from .bound import Args
from .importance_weighted import ImportanceWeighted_ELBO
from .path_derivative import Gates, gated_trace


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
        num_passes = num
        if plate.broadcasts:
            num_passes = 1
            model = over_particles(model, num, plate)
            guide = over_particles(guide, num, plate)

        passes = []
        for _ in range(num_passes):
            passes.append(self._run(model, guide, args, plate))

        self._warn_of_scales(passes[0].model)

        each = []
        for one in passes:
            each.append(one.log_p - one.log_q.detach())
        log_w = torch.cat(each)  # (K, B)
        v = log_w.detach().softmax(0)
        bound = (log_w.logsumexp(0) - math.log(num)).sum()

        rest = log_w.new_zeros(())
        for one, share in zip(passes, v.split(num // num_passes), strict=True):
            terms = _objective(one, one.drawn, plate)
            rest = rest + torch.as_tensor(terms).sum() / num_passes
            rest = rest + _whole_gradients(one, share, plate, num_passes)

            # by v_k what log p sends back to z_k, which has one v_k already
            for site in _draws(one.handed_over).values():
                factor = _aligned(share, site, plate)
                site["value"].register_hook(partial(torch.mul, factor))
            rest = rest - one.gates.path(one.log_q, share.square())

        return -plate.scale(passes[0].model) * (bound + rest)

    def _run(
        self,
        model: Program,
        guide: Program,
        args: Args,
        plate: DataPlate,
    ) -> "_Pass":
        """Run the guide behind gates, and the model at its draws."""
        guide_trace, gates = gated_trace(guide, args, type(self).__name__)
        drawn = prune_subsample_sites(guide_trace)
        self._refuse_score_function(drawn)
        handed_over = _handed_over(guide_trace)
        model_trace = prune_subsample_sites(run(model, args, against=handed_over))

        log_q = per_datum_log_prob(drawn, plate.dim, particles=plate.broadcasts)
        log_p = per_datum_log_prob(model_trace, plate.dim, particles=plate.broadcasts)
        if not plate.broadcasts:  # one particle
            log_q, log_p = log_q.unsqueeze(0), log_p.unsqueeze(0)
        return _Pass(guide_trace, gates, drawn, handed_over, model_trace, log_q, log_p)


@dataclass(frozen=True)
class _Pass:
    """One pass of both programs, with all k particles or with one.

    Attributes:
        guide: The guide's trace, its draws behind gates.
        gates: These gates.
        drawn: The same trace without the subsampling of plates.
        handed_over: The same draws as tensors of their own.
        model: The model's trace at these.
        log_q, log_p: The densities, ``(k, B)``.
    """

    guide: Trace
    gates: Gates
    drawn: Trace
    handed_over: Trace
    model: Trace
    log_q: Tensor
    log_p: Tensor


def _handed_over(guide_trace: Trace) -> Trace:
    """The guide's draws as tensors of their own, whose gradients are those of the model alone."""
    trace = Trace()
    for name, site in guide_trace.nodes.items():
        if is_latent(site):
            site = {**site, "value": site["value"].view_as(site["value"])}
        trace.add_node(name, **site)
    return trace


def _draws(trace: Trace) -> Sites:
    """The draws that carry a gradient."""
    drawn = sites(trace, DRAWN)
    return {n: s for n, s in drawn.items() if s["value"].requires_grad}


def _aligned(factor: Tensor, site: Message, plate: DataPlate) -> Tensor:
    """A factor ``(k, B)`` that broadcasts against the draws of a site."""
    event_dim = len(site["fn"].event_shape)
    batch_dim = site["value"].dim() - event_dim
    shape = [1] * batch_dim
    shape[plate.dim] = factor.shape[1]

    if plate.broadcasts:  # the particles' dimension is the first one
        shape[0] = len(factor)
    return factor.reshape(*shape, *[1] * event_dim)


def _objective(one: _Pass, guide_trace: Trace, plate: DataPlate) -> Tensor | float:
    """The terms of the objective alone, of the model and of a guide's trace."""
    particles = plate.broadcasts
    return objective_terms(one.model, guide_trace, plate.dim, particles=particles)


def _whole_gradients(
    one: _Pass,
    factor: Tensor,
    plate: DataPlate,
    num_passes: int,
) -> Tensor:
    """A number equal to 0 with the gradient of what a factor takes from the objective.

    That is the share which the factor takes from the model's terms of it.
    """
    terms = _objective(one, Trace(), plate)
    draws = _draws(one.handed_over)
    zero = factor.new_zeros(())
    if not isinstance(terms, Tensor) or not terms.requires_grad or not draws:
        return zero

    total = terms.sum() / num_passes
    values = [site["value"] for site in draws.values()]
    gradients = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
    for (name, site), gradient in zip(draws.items(), gradients, strict=True):
        if gradient is not None:
            missing = (1 - _aligned(factor, site, plate)) * gradient
            zero = zero + (missing * one.guide.nodes[name]["value"]).sum()
    return zero - zero.detach()
