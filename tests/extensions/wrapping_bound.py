"""A bound that a stranger writes around another: it counts how often it was computed.

It states no facts of its own, and calls the wrapped bound whatever it likes.
"""

from pyro_vaes.infer import Bound


class Counting_ELBO(Bound):
    def __init__(self, engine):
        super().__init__(num_particles=engine.num_particles)
        self.engine, self.count = engine, 0

    def negative_bound(self, model, guide, *args):
        self.count += 1
        return self.engine.differentiable_loss(model, guide, *args)
