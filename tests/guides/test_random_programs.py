"""P12: programs drawn at random, each with a composed guide.

One to four latents of random families and event shapes, in plates of dimension -1 to -3
that nest, cross and subsample, under masks of handlers and of distributions and under
scales. The loss must be what the densities of both traces add up to by hand, masked rows
must have log weight 0, and both programs must agree on plates, masks and scales.
"""

import random
from collections import Counter
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_vaes.guides import Amortized, ComposedGuide, Free, FromPrior
from pyro_vaes.programs import Role, sites

NUM_PROGRAMS, NUM_BATCHES = 500, 10
FAMILIES = {
    "normal": lambda loc: dist.Normal(loc, 1.0),
    "gamma": lambda loc: dist.Gamma(2.0 + loc.abs(), 1.0),
    "beta": lambda loc: dist.Beta(2.0 + loc.abs(), 1.5),
    "log-normal": lambda loc: dist.LogNormal(loc, 0.5),
    "uniform": lambda loc: dist.Uniform(loc - 1, loc + 1),
}
VECTORS = {
    "vector": lambda loc: dist.Normal(loc.unsqueeze(-1).expand(*loc.shape, 2), 1.0).to_event(1),
    "matrix": lambda loc: dist.Normal(loc[..., None, None].expand(*loc.shape, 2, 3), 1.0).to_event(2),
    "dirichlet": lambda loc: dist.Dirichlet(1.0 + loc.abs().unsqueeze(-1).expand(*loc.shape, 3)),
    "full": lambda loc: dist.MultivariateNormal(loc.unsqueeze(-1).expand(*loc.shape, 2), torch.eye(2)),
}


class RandomProgram:
    """A Pyro program drawn from a seed, with the features that it has."""

    def __init__(self, seed):
        r = random.Random(seed)
        self.features = Counter()
        self.plates = {}
        for dim in range(-1, -1 - r.randint(1, 3), -1):
            size = r.randint(2, 4)
            drawn = size - 1 if r.random() < 0.3 else None
            self.plates[f"plate{dim}"] = (dim, size, drawn)
            self.features["subsampled"] += drawn is not None

        self.latents = []
        for i in range(r.randint(1, 4)):
            family = r.choice([*FAMILIES, *VECTORS])
            around = [name for name in self.plates if r.random() < 0.6]
            mask = r.choice([None, None, "handler", "distribution", "off"])
            scale = r.choice([1.0, 1.0, 0.5])
            self.latents.append((f"z{i}", family, around, mask, scale, r.random() < 0.5, r.random()))
            self._count(family, around, mask, scale)

    def _count(self, family, around, mask, scale):
        found = {
            "event": family in VECTORS,
            "constrained": family in ("gamma", "beta", "log-normal", "uniform", "dirichlet"),
            "nested": len(around) > 1,
            "global": not around,
            "deep": "plate-3" in around,
            "mask by handler": mask in ("handler", "off"),
            "mask by distribution": mask == "distribution",
            "scale": scale != 1.0,
        }
        self.features.update({name: int(has) for name, has in found.items()})

    def __call__(self, x):
        entered = {}
        for name, (dim, size, drawn) in self.plates.items():
            entered[name] = pyro.plate(name, size, subsample_size=drawn, dim=dim)

        total = torch.zeros(())
        for name, family, around, mask, scale, is_chained, _ in self.latents:
            with ExitStack() as stack:
                for plate in around:
                    stack.enter_context(entered[plate])
                stack.enter_context(poutine.scale(scale=scale))
                shape = self._shape(around)
                rows = torch.arange(shape.numel()).reshape(shape) % 2 == 0
                if mask == "handler":
                    stack.enter_context(poutine.mask(mask=rows))
                if mask == "off":
                    stack.enter_context(poutine.mask(mask=False))

                loc = self._of(total, around) if is_chained else torch.zeros(shape)
                make = FAMILIES.get(family) or VECTORS[family]
                prior = make(loc)
                if mask == "distribution":
                    prior = prior.expand(torch.broadcast_shapes(prior.batch_shape, shape)).mask(rows)
                value = pyro.sample(name, prior)
                event_dim = len(prior.event_shape)
                total = self._of(value.flatten(-event_dim).mean(-1) if event_dim else value, around)

        with ExitStack() as stack:
            for plate in entered.values():
                stack.enter_context(plate)
            every = self._shape(self.plates)
            loc = self._of(total, list(self.plates)) if self.latents else torch.zeros(every)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.expand(every))

    def _shape(self, around):
        shape = [1] * -min((self.plates[n][0] for n in around), default=0)
        for name in around:
            dim, size, drawn = self.plates[name]
            shape[dim] = drawn or size
        return torch.Size(shape)

    def _of(self, value, around):
        """A value, averaged over the plates that a site is not in."""
        wanted = {self.plates[name][0] for name in around}
        for dim in range(-value.dim(), 0):
            if dim not in wanted:
                value = value.mean(dim, keepdim=True)
        shape = self._shape(around)
        while value.dim() > len(shape):
            value = value.squeeze(0)
        return value.expand(shape)

    def guide(self):
        rules = {}
        for name, _, around, mask, _, _, draw in self.latents:
            draws_rows = any(self.plates[n][2] for n in around)
            if draw < 0.2:
                rules[name] = FromPrior()
            elif draw < 0.5 and not (draws_rows and mask):
                rules[name] = Free()
            else:
                rules[name] = Amortized(_network)
        return ComposedGuide(self, rules)


def _network(x, site):
    event = site.reals.unconstrained_shape
    return torch.full(event, 0.1), torch.full(event, 0.6)


def by_hand(trace):
    """The scaled and masked log-densities of a trace, and those of its latents by row."""
    total, latents = 0.0, {}
    for name, site in sites(trace, frozenset({Role.LATENT, Role.OBSERVED})).items():
        log_prob = site["fn"].log_prob(site["value"])
        if site["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, torch.zeros(()))
        latents[name] = log_prob
        total = total + site["scale"] * log_prob.sum()
    return total, latents


@pytest.mark.parametrize("batch", range(NUM_BATCHES))
def test_p12_random_programs(batch):
    torch.set_default_dtype(torch.float64)
    for seed in range(batch, NUM_PROGRAMS, NUM_BATCHES):
        program = RandomProgram(seed)
        guide, x = program.guide(), torch.tensor(0.3)

        pyro.set_rng_seed(seed)
        found = Trace_ELBO().differentiable_loss(program, guide, x)
        pyro.set_rng_seed(seed)
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(program, trace=guide_trace)).get_trace(x)
        log_p, of_model = by_hand(model_trace)
        log_q, of_guide = by_hand(guide_trace)

        assert torch.isfinite(found)
        torch.testing.assert_close(-found, log_p - log_q, rtol=1e-9, atol=1e-9)
        for name, _, _, mask, _, _, _ in program.latents:
            p, q = model_trace.nodes[name], guide_trace.nodes[name]
            assert p["scale"] == q["scale"] and p["cond_indep_stack"] == q["cond_indep_stack"]
            assert p["fn"].batch_shape == q["fn"].batch_shape, (seed, name)
            if mask is not None:
                weights = (of_model[name] - of_guide[name]).broadcast_to(q["fn"].batch_shape)
                rows = torch.arange(weights.numel()).reshape(weights.shape) % 2 == 1
                masked = weights if mask == "off" else weights[rows]
                assert torch.equal(masked, torch.zeros_like(masked)), (seed, name)
            if isinstance(guide.rule_at(guide._keys.index(name)), FromPrior):
                torch.testing.assert_close(of_model[name], of_guide[name])


def test_every_feature_is_there_often_enough():
    counts = Counter()
    for seed in range(NUM_PROGRAMS):
        counts.update({name: int(n > 0) for name, n in RandomProgram(seed).features.items()})
    assert min(counts.values()) >= 50, counts
