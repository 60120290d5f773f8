"""Amortised flows: exact where they can be, better than a diagonal normal, and for any program."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vaes.diagnostics import collapse_report, log_likelihood
from pyro_vaes.distributions import HouseholderNormal, InverseAutoregressive
from pyro_vaes.guides import AmortizedHouseholder, AmortizedIAF, AmortizedNormal
from pyro_vaes.infer import ImportanceWeighted_ELBO
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, HouseholderHead, IAFHead, NormalHead
from pyro_vaes.theory import ProbabilisticPCA

D, K, N, NOISE = 6, 3, 20, 0.4


def linear_gaussian():
    torch.set_default_dtype(torch.float64)
    vae = VAE(NormalHead(D, K), MLP(K, [], D), GaussianLikelihood(scale=NOISE), K)
    with torch.no_grad():
        vae.decoder[0].weight.mul_(2.0)  # correlated posteriors
    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()
    return vae, ProbabilisticPCA(bias, weight, torch.tensor(NOISE**2)), torch.randn(N, D)


class Turned(nn.Module):
    """The exact posterior of a linear-Gaussian model as a reflected normal: its eigenvectors as K reflections."""

    def __init__(self, ppca):
        super().__init__()
        self.ppca = ppca

    def forward(self, x):
        exact = self.ppca.posterior(x)
        values, turn = torch.linalg.eigh(exact.covariance_matrix[0])
        rest, signs, vectors = turn.clone(), torch.ones(K), []
        for k in range(K):  # each reflection brings one column home, up to its sign
            v = rest[:, k] - torch.eye(K)[k] * (1 if rest[k, k] < 0 else -1) * rest[:, k].norm()
            rest = rest - 2 * torch.outer(v, v @ rest) / (v @ v)
            signs[k] = rest[k, k].sign()
            vectors.append(v)
        loc = signs * (exact.mean @ turn)  # H = turn @ diag(signs), so H diag(values) Hᵀ is the covariance
        return HouseholderNormal(loc, values.sqrt(), torch.stack(vectors[::-1]))


class Triangular(nn.Module):
    """The exact posterior as one step with a linear network: sigmoid(s) (z + B z) with I + B = L diag(L)⁻¹."""

    def __init__(self, ppca, logit=1.0):
        super().__init__()
        self.ppca, self.logit = ppca, torch.tensor(logit)

    def forward(self, x):
        exact, gate = self.ppca.posterior(x), torch.sigmoid(self.logit)
        factor = torch.linalg.cholesky(exact.covariance_matrix[0])
        mixing = factor / factor.diagonal()  # I + B
        loc = torch.linalg.solve_triangular(gate * mixing, exact.mean.T, upper=False).T
        below = (mixing - torch.eye(K)) * gate / (1 - gate)
        step = InverseAutoregressive(lambda z, h: (z @ below.T, self.logit.expand(z.shape)), x, range(K))
        return dist.TransformedDistribution(dist.Normal(loc, factor.diagonal() / gate).to_event(1), [step])


@pytest.mark.parametrize(("make", "exact"), [(AmortizedHouseholder, Turned), (AmortizedIAF, Triangular)])
def test_with_the_exact_posterior_every_single_draw_gives_the_evidence(make, exact):
    vae, ppca, x = linear_gaussian()
    guide = make(vae.model, exact(ppca))
    for seed in range(5):
        pyro.set_rng_seed(seed)
        assert abs(-Trace_ELBO().loss(vae.model, guide, x) - ppca.log_prob(x).sum().item()) < 1e-8
    estimate = log_likelihood(vae.model, guide, x, 1)
    assert torch.allclose(estimate.log_likelihood, ppca.log_prob(x), atol=1e-9)
    for bound in (Trace_ELBO(3, vectorize_particles=True), ImportanceWeighted_ELBO(3)):
        assert abs(-bound.loss(vae.model, guide, x) - ppca.log_prob(x).sum().item()) < 1e-8
    z = torch.randn(7, N, K)
    assert torch.allclose(guide.posterior(x).log_prob(z), ppca.posterior(x).log_prob(z), atol=1e-9)


def test_householder_without_flows_is_the_amortised_normal():
    vae, _, x = linear_gaussian()
    head = HouseholderHead(D, K, flows=0)
    guides = AmortizedHouseholder(vae.model, head), AmortizedNormal(vae.model, head.normal)
    for bound in (Trace_ELBO(), TraceMeanField_ELBO()):
        losses = []
        for guide in guides:
            pyro.set_rng_seed(3)
            losses.append(bound.loss(vae.model, guide, x))
        assert losses[0] == pytest.approx(losses[1], rel=1e-13)


def test_the_analytic_kl_of_the_reflected_normal_has_the_right_expectation():
    """2,000 draws of both bounds on one pair: their means agree within 5 standard errors of the difference."""
    vae, _, x = linear_gaussian()
    guide = AmortizedHouseholder(vae.model, HouseholderHead(D, K))
    with torch.no_grad():
        means, errors = [], []
        for bound in (Trace_ELBO, TraceMeanField_ELBO):
            losses = torch.tensor(
                [bound(100, vectorize_particles=True, max_plate_nesting=1).loss(vae.model, guide, x) for _ in range(20)]
            )
            means.append(losses.mean())
            errors.append(losses.var() / len(losses))
    assert abs(means[0] - means[1]) < 5 * sum(errors).sqrt()


@pytest.mark.parametrize("make", [AmortizedHouseholder, AmortizedIAF])
def test_training_passes_the_best_diagonal_normal(make):
    """One datum with two latents that trade off: the best diagonal q has scales 1 / sqrt(P_ii), and is short of the
    evidence by 1/2 (sum log P_ii - log |P|); the flow must halve that. 2,000 draws: a standard error below 0.03 nats.
    """
    vae, _, x = linear_gaussian()
    layer, x = vae.decoder[0], x[:1]
    with torch.no_grad():
        layer.weight[:, 1] = layer.weight[:, 0] + 0.3 * layer.weight[:, 1]
    ppca = ProbabilisticPCA(layer.bias.detach(), layer.weight.detach(), torch.tensor(NOISE**2))
    precision = ppca.posterior(x).precision_matrix[0]
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.5
    head = HouseholderHead(D, K) if make is AmortizedHouseholder else IAFHead(D, K, flows=2, hidden=[16])
    guide, many = make(vae.model, head), {"vectorize_particles": True, "max_plate_nesting": 1}
    optimizer = torch.optim.Adam(guide.parameters(), lr=3e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.5)
    with pyro.validation_enabled(False):
        for _ in range(300):
            optimizer.zero_grad()
            Trace_ELBO(8, **many).differentiable_loss(vae.model, guide, x).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        short = ppca.log_prob(x).sum() + Trace_ELBO(2000, **many).loss(vae.model, guide, x)
    assert short < 0.5 * gap


@pytest.mark.parametrize("make", [AmortizedHouseholder, AmortizedIAF])
def test_several_and_constrained_sites_change_variables(make):
    """log q of what is drawn is the flow's density in the unconstrained space minus the maps' log |det|."""
    torch.set_default_dtype(torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Normal(rate.unsqueeze(-1) * share, 1.0).to_event(1), obs=x)

    x = torch.randn(N, 3)
    guide = make(model, HouseholderHead(3, 3) if make is AmortizedHouseholder else IAFHead(3, 3, hidden=[8]))
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    total = sum(s["log_prob"] for s in trace.nodes.values() if s["type"] == "sample")
    sites = guide.latents(x).sites
    flat = torch.cat([s.transform.inv(trace.nodes[s.name]["value"]).reshape(N, -1) for s in sites], -1)
    log_det = sum(s.constrain(p)[1] for s, p in zip(sites, guide.latents(x).split(flat), strict=True))
    assert (trace.nodes["rate"]["value"] > 0).all()
    assert torch.allclose(total, guide.posterior(x).log_prob(flat) - log_det, rtol=0, atol=1e-8)
    assert math.isfinite(ImportanceWeighted_ELBO(4).loss(model, guide, x))


@pytest.mark.parametrize("make", [AmortizedHouseholder, AmortizedIAF])
def test_a_plate_that_draws_its_rows(make):
    torch.set_default_dtype(torch.float64)

    def model(x):
        with pyro.plate("data", 20, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.repeat_interleave(2, -1), NOISE).to_event(1), obs=x[rows])

    x = torch.randn(20, D)
    guide = make(model, HouseholderHead(D, K) if make is AmortizedHouseholder else IAFHead(D, K, hidden=[8]))
    trace = poutine.trace(guide).get_trace(x)
    rows = trace.nodes["data"]["value"]
    base = {AmortizedHouseholder: lambda q: q.loc, AmortizedIAF: lambda q: q.base_dist.mean}[make]
    assert torch.equal(base(trace.nodes["z"]["fn"]), base(guide.posterior(x[rows])))


def test_diagnostics_that_want_densities_of_other_data():
    """A collapse report compares every draw with every datum's posterior: by inversion for the flow."""
    vae, _, x = linear_gaussian()
    guide = AmortizedIAF(vae.model, IAFHead(D, K, flows=2, hidden=[8]))
    site = collapse_report(vae.model, guide, x, num_particles=2)["z"]
    assert site.kl_per_datum.shape[0] == N and math.isfinite(site.mutual_information)


def test_svi_trains_both():
    vae, _, x = linear_gaussian()
    for guide in (
        AmortizedHouseholder(vae.model, Chain(MLP(D, [8], 8), HouseholderHead(8, K))),
        AmortizedIAF(vae.model, Chain(MLP(D, [8], 8), IAFHead(8, K, flows=2, hidden=[8]))),
    ):
        svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        losses = [svi.step(x) for _ in range(40)]
        assert sum(losses[-5:]) < sum(losses[:5])


def test_encoders_that_do_not_fit_are_named():
    vae, _, x = linear_gaussian()
    for make, head in ((AmortizedHouseholder, "HouseholderHead"), (AmortizedIAF, "IAFHead")):
        with pytest.raises(ValueError, match=f"{head} behind the trunk.*AmortizedNormal"):
            make(vae.model, NormalHead(D, K))(x)
    with pytest.raises(ValueError, match=r"need 3 numbers per datum: z \(3,\)"):
        AmortizedHouseholder(vae.model, HouseholderHead(D, 2))(x)
    other = dist.transforms.affine_autoregressive(K)

    class Foreign(nn.Module):
        def forward(self, x):
            return dist.TransformedDistribution(dist.Normal(torch.zeros(len(x), K), 1.0).to_event(1), [other])

    with pytest.raises(ValueError, match="InverseAutoregressive steps"):
        AmortizedIAF(vae.model, Foreign())(x)
