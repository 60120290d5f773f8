"""A callback that a stranger writes: after each epoch it fits another pair by Pyro's SVI."""

import pyro
from pyro.infer import SVI, Trace_ELBO

from pyro_vaes.infer import Callback
from pyro_vaes.programs import preserve_rng


class FitAnother(Callback):
    def __init__(self, model, guide, x, steps):
        self.model, self.guide, self.x, self.steps = model, guide, x, steps
        self.losses = []

    def epoch(self, run):
        with preserve_rng(0):  # the run's own noise goes on as if nothing had been drawn
            optim = pyro.optim.Adam({"lr": 1e-2})
            svi = SVI(self.model, self.guide, optim, Trace_ELBO())
            self.losses += [svi.step(self.x) for _ in range(self.steps)]
