"""Sites that the model sums over: log-sum-exp per unit, draws of them from their posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO

from pyro_vaes.diagnostics import log_likelihood, log_weights, posterior_predictive, prior_predictive, to_datatree
from pyro_vaes.infer import evaluate

N = 9
X = 2 * torch.randn(N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
PROBS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
LOCS = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)


def mixture(x):
    """c ~ Cat(PROBS), z ~ N(LOCS[c], 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(LOCS[c], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    """The exact q(z | x), a mixture itself."""
    with pyro.plate("data", len(x)):
        logits = dist.Normal(LOCS, 2**0.5).log_prob(x.unsqueeze(-1)) + PROBS.log()
        components = dist.Normal((x.unsqueeze(-1) + LOCS) / 2, X.new_tensor(0.5).sqrt())
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))


def evidence(x):
    parts = dist.Normal(LOCS, X.new_tensor(2.0).sqrt()).log_prob(x.unsqueeze(-1))
    return (parts + PROBS.log()).logsumexp(-1)


@pytest.mark.parametrize("batch_size", [1, 4, N])
def test_weights_of_the_exact_guide_are_the_evidence(batch_size):
    found = log_weights(mixture, guide, X, 6, batch_size=batch_size, chunk_size=4)
    torch.testing.assert_close(found, evidence(X).expand(6, N), rtol=0, atol=1e-9)
    estimate = log_likelihood(mixture, guide, X, 6)
    torch.testing.assert_close(estimate.log_likelihood, evidence(X), rtol=0, atol=1e-9)


def test_the_bound_agrees():
    loss = evaluate(mixture, guide, X, loss=TraceEnum_ELBO(max_plate_nesting=1))
    assert loss == pytest.approx(-evidence(X).mean().item(), abs=1e-9)


def test_inner_plates_and_masks_are_summed_one_by_one():
    """Five draws of c for each datum, one of them masked: a product of five mixtures, not a mixture of products."""
    words = X.unsqueeze(-1) + torch.arange(5).double()
    seen = torch.arange(5) < 4

    def model(x):
        with pyro.plate("documents", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("words", 5, dim=-1), pyro.poutine.mask(mask=seen):
                c = pyro.sample("c", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(z + LOCS[c], 1.0), obs=x)

    def normal(x):
        with pyro.plate("documents", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 0.7))

    def by_hand(x, z):
        parts = dist.Normal(z.unsqueeze(-1) + LOCS, 1.0).log_prob(x.unsqueeze(-1)) + PROBS.log()
        log_x = (parts.logsumexp(-1) * seen).sum(-1)
        log_q = dist.Normal(x.mean(1), 0.7).log_prob(z[..., 0])
        return dist.Normal(X.new_zeros(()), 1.0).log_prob(z[..., 0]) + log_x - log_q

    tree = to_datatree(model, normal, words, 6, groups=["posterior", "sample_stats"])
    z = torch.tensor(tree.posterior.z.values[0])
    found = torch.tensor(tree.sample_stats.log_weight.values[0])
    torch.testing.assert_close(found, by_hand(words, z.unsqueeze(-1)), rtol=0, atol=1e-9)


def test_draws_of_the_summed_site_come_from_their_posterior():
    x = X[:1].expand(4000)
    drawn = to_datatree(mixture, guide, x, 1, groups=["posterior_predictive", "posterior"], batch_size=4000)
    new = torch.tensor(drawn.posterior_predictive.x.values[0, 0])
    assert new.shape == (4000,)

    responsibilities = (dist.Normal(LOCS, 2**0.5).log_prob(X[:1].unsqueeze(-1)) + PROBS.log()).softmax(-1)[0]
    loc = (responsibilities * (X[0] + LOCS) / 2).sum()
    spread = ((responsibilities * ((X[0] + LOCS) / 2 - loc) ** 2).sum() + 0.5 + 1).sqrt()
    assert new.mean().item() == pytest.approx(loc.item(), abs=4 * spread.item() / 4000**0.5)


def test_predictive_checks():
    assert posterior_predictive(mixture, guide, X, 3)["x"].shape == (3, N)
    new = prior_predictive(mixture, None, X, 800)["x"]
    mean = (PROBS * LOCS).sum()
    spread = ((PROBS * (LOCS - mean) ** 2).sum() + 2).sqrt()
    assert new.mean().item() == pytest.approx(mean.item(), abs=4 * spread.item() / (800 * N) ** 0.5)
