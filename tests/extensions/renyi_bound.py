"""A bound that a stranger writes: the variational Rényi bound, datum by datum.

    L_alpha = sum_n 1 / (1 - alpha) E log 1/K sum_k w_nk^(1 - alpha),    alpha != 1

References:
    | Rényi Divergence Variational Inference (Li & Turner, 2016)
    | https://arxiv.org/abs/1602.02311
"""

import math

from pyro_vaes.infer import Bound
from pyro_vaes.programs import Findings, find_data_plate, per_datum_log_weights


class RenyiAlpha_ELBO(Bound):
    has_kl = False

    def __init__(self, alpha, num_particles):
        super().__init__(num_particles=num_particles)
        self.alpha = alpha
        self._plates = Findings()

    def negative_bound(self, model, guide, *args):
        plate = self._plates.of((model, guide), args, lambda: find_data_plate(model, guide, args))
        log_weights, guide_trace, model_trace = per_datum_log_weights(model, guide, args, self.num_particles, plate)
        self._refuse_score_function(guide_trace)

        power = 1 - self.alpha
        log_mean = (power * log_weights).logsumexp(0) - math.log(self.num_particles)
        return -plate.scale(model_trace) * (log_mean / power).sum()
