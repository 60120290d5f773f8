"""The bound that averages the importance weights of a guide, datum by datum.

    L_K = sum_n E[ log 1/K sum_k w_nk ],    w_nk = p(x_n, z_nk) / q(z_nk | x_n)

The weights are those of the programs themselves, see
:mod:`pyro_vaes.programs.densities`.

References:
    | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    | https://arxiv.org/abs/1509.00519
"""

import logging
import math

from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.programs import (
    DENSITIES,
    DataPlate,
    Program,
    find_particle_plate,
    objective_terms,
    per_datum_log_weights,
    sites,
    weighed_sites,
)

from .bound import Args, Bound, found_once

logger = logging.getLogger(__name__)


class ImportanceWeighted_ELBO(Bound):
    """The importance-weighted bound with K particles, per datum and right under plates and scales.

    Each datum has its own logarithm of a mean (unlike :class:`~pyro.infer.RenyiELBO`, which
    takes one for the batch under scales). A subsampling plate multiplies the sum over its B
    rows by N / B. Factors of the objective alone (``infer={"objective_only": True}``) are
    added to the bound of a datum once, outside the logarithm; without their sites' scales,
    as all densities here, so that a weight of theirs belongs into the factor itself.
    Programs that do not broadcast over particles are run once for each of them.

    Arguments:
        num_particles: K.

    Raises:
        ValueError: ``num_particles`` is below 1; at a call, the pair has no data plate, or a
            site of the guide is not reparameterised.
    """

    has_kl = False

    def __init__(self, num_particles: int = 2) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, but got {num_particles}.")
        super().__init__(num_particles=num_particles)
        self._has_looked = False

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-L_K, differentiable through reparameterised sites."""
        plate = self._plate(model, guide, args)
        log_weights, guide_trace, model_trace = per_datum_log_weights(
            model,
            guide,
            args,
            self.num_particles,
            plate,
        )

        self._refuse_score_function(guide_trace)
        self._warn_of_scales(model_trace)

        bound = log_weights.logsumexp(0) - math.log(self.num_particles)  # (B,)
        bound = bound + objective_terms(model_trace, guide_trace, plate.dim)
        return -plate.scale(model_trace) * bound.sum()

    def _warn_of_scales(self, model_trace: Trace) -> None:
        """Say once that a KL weight, or another scale of a site, has no effect."""
        if self._has_looked:
            return
        self._has_looked = True

        weighed = weighed_sites(sites(model_trace, DENSITIES))
        if weighed:
            logger.warning(
                "%s leaves the scales of sites out, apart from those of plates: the "
                "ones of %s have no effect. Use Trace_ELBO for KL weights.",
                type(self).__name__,
                weighed,
            )

    @found_once
    def _plate(self, model: Program, guide: Program, args: Args) -> DataPlate:
        return find_particle_plate(model, guide, args, self.num_particles)
