"""Progressive training: rungs below the top one fade in, in the decoder and in the KL terms of model and guide."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vaes.infer import Callback, ProgressiveRungs, fit
from pyro_vaes.infer.training.callbacks import Run
from pyro_vaes.models import LadderVAE
from pyro_vaes.nn import BernoulliLikelihood, mlp_ladder

D, DIMS = 12, [2, 3, 2]
SITES = [["z_1"], ["z_2"], ["z_3"]]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def ladder():
    return LadderVAE(*mlp_ladder(D, DIMS, width=8, activation=torch.nn.LeakyReLU), BernoulliLikelihood(), DIMS)


def injections(model):
    return [merge.network for merge in model.merges]


def at(step):
    """A run at a step, as far as the schedule looks at it."""
    return Run(None, None, 1, 1, step=step)


def test_the_schedule_starts_with_the_top_rung():
    model = ladder()
    rungs = ProgressiveRungs(SITES, injections(model), steps=100, stage=150)
    assert rungs.weights(0) == rungs.weights(150)
    assert [rungs.weights(t) for t in (0, 200, 250, 350, 400)] == [
        [0.0, 0.0, 1.0],
        [0.0, 0.5, 1.0],
        [0.0, 1.0, 1.0],
        [0.5, 1.0, 1.0],
        [1.0, 1.0, 1.0],
    ]
    assert rungs.handler(at(400)) is None


@pytest.mark.parametrize("bound", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_step_is_the_bound_of_the_faded_ladder(bound):
    model, x = ladder(), torch.bernoulli(torch.full((9, D), 0.4))
    rungs = ProgressiveRungs(SITES, injections(model), steps=100, start=1e-3)
    pyro.set_rng_seed(3)
    sites = poutine.trace(model.guide).get_trace(x).nodes
    z, q = ([sites[n][key] for n in ("z_1", "z_2", "z_3")] for key in ("value", "fn"))
    alpha = [0.0, 0.4, 1.0]
    t = model.decoders[2](z[2])
    for level in (1, 0):
        merge = model.merges[level]
        t = model.decoders[level](t + alpha[level] * merge.gate * merge.network(z[level]))
    kl = [
        torch.distributions.kl_divergence(a, p().expand(a.batch_shape)) if bound is TraceMeanField_ELBO else
        a.log_prob(v) - p().log_prob(v)
        for a, p, v in zip(q, model.priors, z, strict=True)
    ]  # fmt: skip
    weighed = sum(w * k.sum() for w, k in zip([1e-3, 0.4, 1.0], kl, strict=True))
    wanted = weighed - model.likelihood(t).log_prob(x).sum()
    pyro.set_rng_seed(3)
    with rungs.handler(at(140)):
        got = bound().loss(model.model, model.guide, x)
    assert got == pytest.approx(wanted.item(), abs=1e-10)
    assert not any(m._forward_hooks for m in model.modules()), "nothing is left in the modules"


def test_a_rung_that_is_off_learns_nothing_of_the_data_and_held_out_bounds_see_every_rung():
    model, x = ladder(), torch.bernoulli(torch.full((40, D), 0.4))
    before = [p.clone() for p in injections(model)[0].parameters()]
    rungs = ProgressiveRungs(SITES, injections(model), steps=1, stage=10**9)

    class Hooks(Callback):
        def __init__(self):
            self.after = []

        def epoch(self, run):
            self.after.append(any(m._forward_hooks for m in model.modules()))

    hooks = Hooks()
    fit(model.model, model.guide, x, valid=x, epochs=2, batch_size=20, callbacks=[rungs, hooks], seed=1, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(injections(model)[0].parameters(), before, strict=True))
    assert hooks.after == [False, False]


def test_hooks_go_when_a_step_fails():
    model = ladder()
    rungs = ProgressiveRungs(SITES, injections(model), steps=10)
    with pytest.raises(RuntimeError, match="broken"), rungs.handler(at(0)):
        raise RuntimeError("broken")
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": SITES[:2]}, "2 rungs have 1 injections below the top one, but got 2"),
        ({"steps": 0}, "steps >= 1"),
        ({"stage": -1}, "stage >= 0"),
        ({"start": 0.0}, "0 < start"),
    ],
)
def test_refusals(options, message):
    model = ladder()
    arguments = {"sites": SITES, "injections": injections(model), "steps": 5, **options}
    with pytest.raises(ValueError, match=message):
        ProgressiveRungs(**arguments)
