"""The inference gap of linear-Gaussian models, where the best normal of either family and the evidence are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vaes.diagnostics import inference_gap
from pyro_vaes.guides import AmortizedMultivariateNormal, AmortizedNormal
from pyro_vaes.infer import scale_latents
from pyro_vaes.nn import MultivariateNormalHead, NormalHead
from pyro_vaes.programs.pair import Pair
from pyro_vaes.theory import ProbabilisticPCA
from tests.diagnostics.linear import EVIDENCE, X, decode, exact, model, noise, prior, wide, wide_posterior

_source = torch.Generator().manual_seed(4)
LOADINGS = torch.randn(5, 3, generator=_source, dtype=torch.float64) + 1.0  # nearly parallel: a correlated posterior
CORRELATED = ProbabilisticPCA(torch.zeros(5, dtype=torch.float64), LOADINGS, torch.tensor(0.5, dtype=torch.float64))
DATA = torch.randn(12, 5, generator=_source, dtype=torch.float64)
P = CORRELATED.posterior(DATA[0]).precision_matrix
GAP = 0.5 * (P.diagonal().log().sum() - torch.logdet(P)).item()  # of the best diagonal normal, for every datum


def correlated(x, size=None):
    """Two sites for the three latents, one of them constrained."""
    plate = pyro.plate("data", len(x)) if size is None else pyro.plate("data", size, subsample_size=len(x))
    with plate:
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        rate = pyro.sample("rate", dist.LogNormal(torch.zeros((), dtype=torch.float64), 1.0))
        every = torch.cat([z, rate.log().unsqueeze(-1).expand((*z.shape[:-1], 1))], -1)
        pyro.sample("x", dist.Normal(every @ LOADINGS.T, 0.5**0.5).to_event(1), obs=x)


def encoded(head):
    """An amortised guide that has learnt nothing yet."""
    torch.manual_seed(0)
    guide = AmortizedNormal if head is NormalHead else AmortizedMultivariateNormal
    return guide(correlated, head(5, 3).double())


def test_the_gap_is_of_some_size():
    assert 0.5 < GAP < 5


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_best_diagonal_normal(start):
    """1/2 (sum log diag P - log |P|) for each datum, within 4 standard errors and 0.01 nats of optimisation."""
    gap = inference_gap(
        correlated, encoded(NormalHead), DATA, log_evidence=CORRELATED.log_prob(DATA), start=start, steps=400, lr=0.2
    )
    error = gap.approximation_error
    assert (error < 0.1).all(), "the comparison says something"
    assert ((gap.approximation - GAP).abs() < 4 * error + 0.01).all()
    assert (gap.approximation.mean() - GAP).abs() < 4 * error.mean() / len(DATA) ** 0.5 + 0.01
    assert (gap.amortisation > 1).all(), "the encoder has learnt nothing"
    assert gap.history.shape == (400,) and gap.history[-50:].mean() > gap.history[:50].mean()
    torch.testing.assert_close(gap.inference, gap.approximation + gap.amortisation)


def test_full_covariance_has_no_approximation_gap():
    """q* is the posterior: every weight is the evidence, so the errors are those of the optimisation."""
    gap = inference_gap(correlated, encoded(MultivariateNormalHead), DATA, full_covariance=True, steps=600, lr=0.2)
    truth = CORRELATED.log_prob(DATA)
    assert (gap.log_evidence - truth).abs().max() < 1e-3
    assert gap.approximation.abs().max() < 1e-3
    assert (gap.amortisation > 1).all()
    assert "full-covariance" in str(gap) and "by IW-1000" in str(gap)


def test_exact_guide_has_no_gap():
    gap = inference_gap(model, exact, X, full_covariance=True, steps=200, log_evidence=EVIDENCE)
    assert gap.inference.abs().max() < 1e-9
    assert gap.approximation.abs().max() < 1e-3
    assert gap.khat.isnan().all() and "as given" in repr(gap)
    few = inference_gap(correlated, encoded(NormalHead), DATA, steps=2, num_particles=10)
    assert few.khat.isnan().all() and "by IW-10" in repr(few)


class Exact(nn.Module):
    def forward(self, x):
        return CORRELATED.posterior(x)


def test_guide_beyond_the_family():
    """The amortisation gap is minus the best diagonal normal's gap, and the evidence comes from the guide's weights."""
    gap = inference_gap(correlated, AmortizedMultivariateNormal(correlated, Exact()), DATA, steps=300, lr=0.2)
    assert ((gap.amortisation + GAP).abs() < 4 * gap.amortisation_error + 0.01).all()
    torch.testing.assert_close(gap.log_evidence, CORRELATED.log_prob(DATA))
    assert gap.inference.abs().max() < 1e-6 and gap.log_evidence_error.max() < 1e-6


def test_evidence_of_a_narrow_family_is_low_and_khat_says_so():
    gap = inference_gap(correlated, encoded(NormalHead), DATA, steps=200, lr=0.2, num_particles=300)
    assert (gap.approximation > 0).all() and (gap.khat > 0.5).any()
    assert gap.log_evidence.mean() < CORRELATED.log_prob(DATA).mean()


@pytest.mark.parametrize("options", [{"batch_size": 5}, {"chunk_size": 7}])
def test_splits_and_plates_do_not_matter(options):
    settings = {"full_covariance": True, "steps": 120, "num_particles": 50, "log_evidence": EVIDENCE[:12]}
    assert inference_gap(model, wide, X[:12], **settings, **options).approximation.abs().max() < 1e-3


def test_subsampling_and_kl_weights_do_not_enter():
    guide = encoded(MultivariateNormalHead)

    def weighted(x):
        with scale_latents(0.3):
            correlated(x, size=500)

    def weighted_guide(x):
        with pyro.plate("data", 500, subsample_size=len(x)):
            return guide.sample(guide.encode(x), latents)

    latents = guide.latents(DATA)
    settings = {"full_covariance": True, "steps": 400, "lr": 0.2, "num_particles": 20}
    gap = inference_gap(weighted, weighted_guide, DATA, log_evidence=CORRELATED.log_prob(DATA), **settings)
    assert gap.approximation.abs().max() < 0.02


def test_program_that_draws_its_own_rows():
    def rows(fn):
        def program(x):
            with pyro.plate("data", len(X), subsample_size=16) as index:
                z = pyro.sample("z", prior() if fn is None else fn(x[index]))
                if fn is None:
                    pyro.sample("x", noise(decode(z)), obs=x[index])

        return program

    gap = inference_gap(rows(None), rows(wide_posterior), X, full_covariance=True, steps=120, num_particles=50)
    assert gap.log_evidence.shape == EVIDENCE.shape
    assert (gap.log_evidence - EVIDENCE).abs().max() < 1e-3


def test_nothing_changes():
    guide = encoded(NormalHead)
    guide(DATA)
    before = {n: t.clone() for n, t in Pair(correlated, guide).state().items()}
    rng = torch.get_rng_state()
    run = lambda seed: inference_gap(correlated, guide, DATA, steps=5, num_particles=30, seed=seed).inference
    first = run(1)
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled() and guide.training
    assert torch.equal(first, run(1)) and not torch.equal(first, run(2))
    after = Pair(correlated, guide).state()
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_particles": 0}, "step_particles"),
        ({"num_particles": 0}, "num_particles"),
        ({"lr": 0.0}, "lr is Adam's first step size"),
        ({"start": "posterior"}, "start must be"),
        ({"log_evidence": torch.zeros(3), "steps": 1, "num_particles": 2}, "log_evidence has shape"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        inference_gap(model, wide, X, **options)
