"""Annealed importance sampling and its reverse against exact evidences, and the transitions they are made of."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vaes.diagnostics import ais, bdmc
from pyro_vaes.diagnostics.handlers import prior_of
from pyro_vaes.diagnostics.likelihood.annealing import Annealing, leapfrog, sigmoidal, tempered, transition
from pyro_vaes.diagnostics.likelihood.unconstrained import UnconstrainedPair
from pyro_vaes.diagnostics.particles import Particles
from pyro_vaes.guides import AmortizedMixture, AmortizedMultivariateNormal, AmortizedNormal
from pyro_vaes.infer import scale_latents
from pyro_vaes.nn import MultivariateNormalHead, NormalHead, WeightHead
from pyro_vaes.programs.pair import Pair
from tests.diagnostics.linear import EVIDENCE, PPCA, D, K, X, decode, exact, model, noise, prior, wide, wide_posterior
from tests.zoo import GUIDES, MODELS, PAIRS

N = len(X)
FAST = {"leapfrog_steps": 3, "num_pilot_chains": 2}


def assert_mean_is_one(values, largest_error):
    """The mean of independent values is 1 within 4 standard errors: a false alarm has probability 6e-5."""
    error = values.std().item() / math.sqrt(values.numel())
    assert error < largest_error, "the comparison says something"
    assert values.mean().item() == pytest.approx(1, abs=4 * error)


def assert_is_evidence(result, evidence, largest_error=0.03):
    """E[w] = p(x): w / p(x) averages to 1 over all chains and data."""
    assert_mean_is_one((result.log_weights - evidence).exp(), largest_error)
    assert result.log_likelihood.shape == result.standard_error.shape == result.ess.shape == evidence.shape


@pytest.mark.parametrize(("start", "num_steps"), [("prior", 60), ("guide", 8)])
def test_weights_average_to_the_evidence(start, num_steps):
    """Seed 0, 100 chains for each of 40 data, n = 4000 weights; a datum's estimate within 5 of its standard errors."""
    result = ais(model, wide, X, num_chains=100, num_steps=num_steps, start=start, **FAST)
    assert_is_evidence(result, EVIDENCE)
    assert ((result.log_likelihood - EVIDENCE).abs() < 5 * result.standard_error).all()
    assert result.acceptance.shape == (num_steps - 1, N) and result.log_weights.shape == (100, N)
    assert 0.5 < result.acceptance.mean() < 0.8
    assert f"from the {start}" in str(result) and f"{num_steps} steps" in repr(result)


def test_annealing_helps():
    """From the prior: the mean log weight, a looser bound, comes closer to the evidence with each doubling of T."""
    slack = [
        (EVIDENCE - ais(model, None, X, num_chains=20, num_steps=t, **FAST).log_weights.mean(0)).mean()
        for t in (2, 6, 18, 54)
    ]
    assert all(later < 0.6 * earlier for earlier, later in pairwise(slack))


def test_one_step_from_the_exact_posterior_is_exact():
    result = ais(model, exact, X, num_chains=7, num_steps=1, start="guide")
    torch.testing.assert_close(result.log_weights, EVIDENCE.expand(7, N), rtol=0, atol=1e-10)
    torch.testing.assert_close(result.ess, torch.full_like(EVIDENCE, 7))
    assert (result.standard_error < 1e-10).all() and result.acceptance.shape == (0, N) and "none" in str(result)


def test_many_steps_from_the_exact_posterior_are_exact():
    """All intermediate densities are the posterior up to a constant; the chains move and the weights do not."""
    result = ais(model, exact, X, num_chains=3, num_steps=5, start="guide", **FAST)
    torch.testing.assert_close(result.log_weights, EVIDENCE.expand(3, N), rtol=0, atol=1e-10)
    sandwich = bdmc(model, exact, X, num_chains=3, num_steps=5, start="guide", **FAST)
    torch.testing.assert_close(sandwich.gap, torch.zeros_like(EVIDENCE), rtol=0, atol=1e-10)
    torch.testing.assert_close(sandwich.lower, PPCA.log_prob(sandwich.observations["x"]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("start", "num_steps"), [("prior", 80), ("guide", 6)])
def test_reverse_weights_average_to_the_inverse_evidence(start, num_steps):
    """E[1 / w'] = 1 / p(x) and E[w] = p(x) on simulated data: seed 0, n = 400 data with 4 chains each.

    Reverse chains share an exact draw of the posterior, so that only the data's averages are independent.
    """
    template = torch.zeros(400, D, dtype=torch.float64)
    result = bdmc(model, wide, template, num_chains=4, num_steps=num_steps, start=start, batch_size=400, **FAST)
    evidence = PPCA.log_prob(result.observations["x"])
    assert_mean_is_one((evidence - result.reverse_log_weights).exp().mean(0), 0.05)
    assert_mean_is_one((result.forward.log_weights - evidence).exp().mean(0), 0.05)
    assert (result.reverse_acceptance.mean(1) - result.forward.acceptance.mean(1)).abs().max() < 0.25
    for below in (evidence - result.lower, result.upper - evidence):
        assert below.mean() > -4 * below.std() / 20, "the evidence lies between the bounds on average"


def test_the_gap_closes():
    """On 100 simulated data, from the prior and then, with a tolerance of 4 standard errors, from the guide."""
    template = torch.zeros(100, D, dtype=torch.float64)
    runs = [bdmc(model, None, template, num_chains=8, num_steps=t, **FAST) for t in (1, 6, 36)]
    gaps = [run.gap.mean() for run in runs]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert all(torch.equal(run.observations["x"], runs[0].observations["x"]) for run in runs[1:])
    meet = bdmc(model, wide, template, num_chains=32, num_steps=40, start="guide", **FAST)
    assert meet.gap.mean().abs() < 4 * meet.gap.std() / 10 + 1e-3 and meet.gap.std() < 0.1
    evidence = PPCA.log_prob(meet.observations["x"])
    assert ((meet.lower - evidence).abs() < 0.2).all() and ((meet.upper - evidence).abs() < 0.3).all()
    assert "gap" in str(meet) and "from the guide" in repr(meet)


def log_exponential(z):
    """The density of log E for a standard exponential E, as q, with no likelihood: skewed, and steep to the right."""
    return (z - z.exp()).squeeze(-1), torch.zeros_like(z).squeeze(-1)


def test_transitions_leave_their_target_invariant():
    """n = 200,000 exact draws, seed 0, after three steps with 60 to 90 % acceptance: moments within 4 s.e."""
    z = torch.empty(200, 1000, 1, dtype=torch.float64).exponential_().log()
    at = tempered(log_exponential, 0.0)
    for _ in range(3):
        z, probability = transition(at, at(z), torch.full((1000,), 1.2, dtype=torch.float64), 3)
        assert 0.6 < probability.mean() < 0.9
    moments = {"E": (z.exp(), 1.0), "E²": (z.exp().square(), 2.0), "log E": (z, -0.5772156649015329)}
    for name, (values, expected) in moments.items():
        error = values.std().item() / values.numel() ** 0.5
        assert values.mean().item() == pytest.approx(expected, abs=4 * error), name


def test_transitions_move_chains_to_their_target():
    """From a point: after 60 transitions the mean and variance are those of log E, n = 20,000, 4 s.e."""
    z, at = torch.zeros(20, 1000, 1, dtype=torch.float64), tempered(log_exponential, 0.0)
    for _ in range(60):
        z, _ = transition(at, at(z), torch.full((1000,), 0.7, dtype=torch.float64), 3)
    values, variance = z.flatten(), math.pi**2 / 6
    assert values.mean().item() == pytest.approx(-0.5772156649, abs=4 * (variance / 20_000) ** 0.5)
    kurtosis = 5.4  # of a Gumbel variable; var of a variance is (kurtosis - 1) var² / n
    assert values.var().item() == pytest.approx(variance, abs=4 * variance * ((kurtosis - 1) / 20_000) ** 0.5)


def test_leapfrog_is_reversible():
    at = tempered(lambda z: (-z.square().square().sum(-1), z.sin().sum(-1)), 0.7)
    z, velocity = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    step = torch.full((3, 5, 1), 0.1, dtype=torch.float64)
    end, final = leapfrog(at, at(z), velocity, step, 20)
    assert (end.z - z).abs().max() > 0.1
    back, start = leapfrog(at, end, -final, step, 20)
    torch.testing.assert_close(back.z, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(-start, velocity, rtol=0, atol=1e-10)


def test_leapfrog_preserves_volume():
    at = tempered(lambda z: (-z.square().square().sum(-1), z.sin().sum(-1)), 0.7)
    start = torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64)  # position and velocity in two dimensions
    step = torch.full((1, 1, 1), 0.1, dtype=torch.float64)

    def flow(state):
        end, final = leapfrog(at, at(state[:2].view(1, 1, 2)), state[2:].view(1, 1, 2), step, 7)
        return torch.cat([end.z.flatten(), final.flatten()])

    shifts = 1e-5 * torch.eye(4, dtype=torch.float64)
    jacobian = torch.stack([(flow(start + s) - flow(start - s)) / 2e-5 for s in shifts], -1)
    assert jacobian.det().abs().item() == pytest.approx(1, abs=1e-8)


def test_schedules():
    """Wu et al.'s formula, and others."""
    betas = Annealing(1, 10, 1, 1, "sigmoidal").betas
    raw = [1 / (1 + math.exp(-4 * (2 * t / 10 - 1))) for t in range(11)]
    expected = [(r - raw[0]) / (raw[-1] - raw[0]) for r in raw]
    assert betas == pytest.approx(expected, abs=1e-12) and betas[0] == 0 and betas[-1] == 1
    assert Annealing(1, 4, 1, 1, "linear").betas == (0, 0.25, 0.5, 0.75, 1)
    assert Annealing(1, 2, 1, 1, lambda t: t**2).betas == (0, 0.25, 1)
    assert torch.equal(sigmoidal(torch.zeros(1)), torch.zeros(1))
    result = ais(model, wide, X, num_steps=6, start="guide", schedule=lambda t: t**2, num_chains=50, **FAST)
    assert_is_evidence(result, EVIDENCE)


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), x.new_tensor(0.5)))
        pyro.sample("x", dist.Poisson(rate), obs=x)


COUNTS = torch.arange(12, dtype=torch.float64)
NEGATIVE_BINOMIAL = dist.NegativeBinomial(
    torch.tensor(2.0, dtype=torch.float64), probs=torch.tensor(1 / 1.5, dtype=torch.float64)
).log_prob(COUNTS)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_constrained_latent(start):
    """A gamma prior and a Poisson likelihood have a negative binomial evidence; n = 12 x 200 weights, seed 0."""

    def log_normal(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((x + 2).log() - 0.6, 0.6))

    options = {"num_chains": 4, "batch_size": 240, **FAST}
    result = ais(gamma_poisson, log_normal, COUNTS, num_chains=200, num_steps=12, start=start, **FAST)
    assert_is_evidence(result, NEGATIVE_BINOMIAL)
    sandwich = bdmc(gamma_poisson, log_normal, COUNTS.repeat(20), num_steps=12, start=start, **options)
    probs = torch.tensor(1 / 1.5, dtype=torch.float64)
    evidence = dist.NegativeBinomial(2.0, probs=probs).log_prob(sandwich.observations["x"])
    assert_mean_is_one((evidence - sandwich.reverse_log_weights).exp().mean(0), 0.1)


def chain(x):
    """z_2 -> z_1 -> x, all of them normal: x has mean 0, variance 0.8² (0.7² 1 + 0.5²) + 0.6²."""
    with pyro.plate("data", len(x)):
        z_2 = pyro.sample("z_2", dist.Normal(x.new_zeros(()), 1.0))
        z_1 = pyro.sample("z_1", dist.Normal(0.7 * z_2, 0.5))
        pyro.sample("x", dist.Normal(0.8 * z_1, 0.6), obs=x)


CHAINED = torch.linspace(-2, 2, 15, dtype=torch.float64)
CHAIN_EVIDENCE = dist.Normal(0.0, torch.tensor(0.8**2 * (0.7**2 + 0.5**2) + 0.6**2).double().sqrt()).log_prob(CHAINED)


def bottom_up(x):
    with pyro.plate("data", len(x)):
        z_1 = pyro.sample("z_1", dist.Normal(0.5 * x, 0.7))
        pyro.sample("z_2", dist.Normal(0.6 * z_1, 0.8))


def amortised(kind):
    def features(x):
        return x.unsqueeze(-1)

    class Column(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head.double()

        def forward(self, x):
            return self.head(features(x))

    if kind == "normal":  # a site for each latent
        return AmortizedNormal(chain, Column(NormalHead(1, 2, scale=1.0)))
    if kind == "multivariate_normal":  # one site for both
        return AmortizedMultivariateNormal(chain, Column(MultivariateNormalHead(1, 2)))
    return AmortizedMixture(chain, [Column(NormalHead(1, 2, scale=1.0)) for _ in range(2)], [Column(WeightHead(1))])


@pytest.mark.parametrize("kind", ["prior", "bottom_up", "normal", "multivariate_normal", "mixture"])
def test_hierarchy(kind):
    """Two latent sites, from the prior, a chain of conditionals and joint guides: n = 15 x 100 weights, seed 0."""
    guide = {"prior": None, "bottom_up": bottom_up}.get(kind) if kind in ("prior", "bottom_up") else amortised(kind)
    options = {"num_steps": 13, "start": "prior" if kind == "prior" else "guide", **FAST}
    assert_is_evidence(ais(chain, guide, CHAINED, num_chains=100, **options), CHAIN_EVIDENCE, 0.05)


@pytest.mark.parametrize(("model_name", "guide_name"), PAIRS)
def test_ratio_of_the_densities_is_the_weight(model_name, guide_name):
    """Every pair of the zoo: at a draw of the guide, log p - log q of the unconstrained vector is its log weight."""
    built = MODELS[model_name]()
    guide = GUIDES[guide_name](built)
    particles = Particles(built.model, guide, built.args)
    with particles.rows() as rows:
        pair = UnconstrainedPair(particles, next(iter(rows)), from_prior=False)
        draws = particles.draw(pair.args, 3)
        z = pair.unconstrain(draws.guide_sites)
        assert z.shape == (3, 6, built.latent_numel)
        log_q, log_ratio = pair(z)
        torch.testing.assert_close(log_ratio, draws.log_weights, rtol=1e-3, atol=2e-3)
        point = tempered(pair, 0.5)(z)
        torch.testing.assert_close(point.log_density, log_q + 0.5 * log_ratio, rtol=1e-3, atol=2e-3)
        assert point.gradient.isfinite().all() and (point.gradient != 0).any()


def test_densities_of_the_prior():
    particles = Particles(gamma_poisson, prior_of(gamma_poisson), COUNTS)
    with particles.rows() as rows:
        pair = UnconstrainedPair(particles, next(iter(rows)), from_prior=True)
        z = torch.randn(3, 12, 1, dtype=torch.float64)
        log_q, log_ratio = pair(z)
    rate = z.squeeze(-1).exp()
    prior = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(log_q, prior.log_prob(rate) + z.squeeze(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_ratio, dist.Poisson(rate).log_prob(COUNTS), rtol=0, atol=1e-12)


def plated(posterior, *, decoder=decode, **options):
    """The model, or with ``posterior`` the guide, under another data plate."""

    def program(x):
        with pyro.plate("rows", **options) as index:
            rows = x[index] if len(index) < len(x) else x
            if posterior is not None:
                pyro.sample("z", posterior(rows))
            else:
                pyro.sample("x", noise(decoder(pyro.sample("z", prior()))), obs=rows)

    return program


def assert_exact(model, guide, data=X, evidence=EVIDENCE, **options):
    """With the exact posterior as the start, three steps, two transitions: every weight is the evidence."""
    result = ais(model, guide, data, num_chains=2, num_steps=3, start="guide", leapfrog_steps=1, **options)
    torch.testing.assert_close(result.log_weights, evidence.expand(2, -1), rtol=0, atol=1e-10)
    assert result.acceptance.shape == (2, len(evidence)) and (result.acceptance > 0).any()


@pytest.mark.parametrize("size", [23, 39])
def test_program_that_draws_its_own_rows(size):
    pair = plated(None, size=N, subsample_size=size), plated(PPCA.posterior, size=N, subsample_size=size)
    assert_exact(*pair)
    sandwich = bdmc(pair[0], None, X, num_steps=2, num_chains=2, leapfrog_steps=1)
    assert sandwich.observations["x"].shape == X.shape and sandwich.gap.shape == (N,)
    with pytest.raises(ValueError, match=r"observed sites \['x'\] are not arguments"):
        bdmc(*pair, X, num_steps=2, start="guide")


def test_plate_that_stands_for_more_data_and_scales():
    pair = plated(None, size=1000, subsample_size=N), plated(PPCA.posterior, size=1000, subsample_size=N)
    assert_exact(*pair)
    assert_exact(poutine.scale(model, scale=0.01), poutine.scale(exact, scale=0.01))
    assert_exact(scale_latents(0.3)(model), scale_latents(0.3)(exact), batch_size=22)


def test_programs_that_do_not_broadcast():
    def rigid(z):
        assert z.dim() == 2
        return decode(z)

    assert_exact(plated(None, decoder=rigid, size=N), plated(PPCA.posterior, size=N))


@pytest.mark.parametrize("data_dim", [-1, -2])
def test_nested_plate_of_observations(data_dim):
    def planted(x):
        with pyro.plate("data", len(x), dim=data_dim):
            z = pyro.sample("z", prior())
            with pyro.plate("features", D, dim=-3 - data_dim):
                loc = decode(z).squeeze(-2) if data_dim == -2 else decode(z).movedim(-1, 0 if z.dim() == 2 else -2)
                if data_dim == -1 and z.dim() > 2:  # particles, a dimension of plates, data
                    loc = decode(z).squeeze(-3).transpose(-1, -2)
                pyro.sample("x", dist.Normal(loc, 0.3**0.5), obs=x if data_dim == -2 else x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=data_dim):
            q = PPCA.posterior(x)
            if data_dim == -2:
                q = dist.MultivariateNormal(q.mean.unsqueeze(1), scale_tril=q.scale_tril.unsqueeze(1))
            pyro.sample("z", q)

    assert_exact(planted, guide)


def test_masked_observations_count_for_nothing():
    seen = torch.arange(N) % 3 > 0

    def partly(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            with poutine.mask(mask=mask):
                pyro.sample("x", noise(decode(z)), obs=x)

    result = ais(partly, None, (X, seen), num_chains=60, num_steps=60, **FAST)
    assert_is_evidence(result, torch.where(seen, EVIDENCE, 0.0))
    assert (result.log_weights[:, ~seen] == 0).all() and (result.log_weights[:, seen] != 0).all()


def with_covariate(x, c):
    with pyro.plate("data", len(x)):
        pyro.sample("x", noise(decode(pyro.sample("z", prior())) + c.unsqueeze(-1)), obs=x)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_simulated_data_keep_their_covariates(start):
    shift = 100.0 * torch.arange(N, dtype=torch.float64)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide_posterior(x - c.unsqueeze(-1)))

    options = {"num_chains": 20, "num_steps": 6, "start": start, "batch_size": 25, **FAST}
    result = bdmc(with_covariate, guide, (torch.zeros_like(X), shift), **options)
    centred = result.observations["x"] - shift.unsqueeze(-1)
    assert (centred.mean(1) - PPCA.mean.mean()).abs().max() < 20
    if start == "guide":
        evidence = PPCA.log_prob(centred)
        assert_mean_is_one((result.forward.log_weights - evidence).exp(), 0.03)
        assert result.gap.mean().abs() < 0.2 and (result.lower - evidence).abs().max() < 0.5


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, K)).double()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("function", [ais, bdmc])
def test_nothing_changes(function):
    network, decoder = Network(), nn.Linear(K, D).double()

    def trained(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            pyro.sample("x", noise(decoder(pyro.sample("z", prior()))), obs=x)

    def guide(x):
        pyro.module("network", network)
        scale = pyro.param("scale", torch.ones(K, dtype=torch.float64), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x), scale).to_event(1))

    guide(X)
    network.net[2].eval()
    modes = [m.training for m in network.modules()]
    decoder.weight.grad = torch.full_like(decoder.weight, 3.0)
    pair = Pair(trained, guide)
    before = {n: t.clone() for n, t in pair.state().items()}
    store = {n: p.clone() for n, p in pyro.get_param_store().items()}
    rng = torch.get_rng_state()
    function(trained, guide, X, num_steps=3, num_chains=2, start="guide", **FAST)
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled()
    assert all(torch.equal(t, before[n]) for n, t in pair.state().items())
    assert store.keys() == dict(pyro.get_param_store().items()).keys() and len(store) > 3
    assert all(torch.equal(p, store[n]) for n, p in pyro.get_param_store().items())
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters()) and decoder.bias.grad is None
    assert (decoder.weight.grad == 3).all() and all(p.requires_grad for p in decoder.parameters())


def test_seeds():
    options = {"num_steps": 3, "num_chains": 3, "leapfrog_steps": 1}
    first = ais(model, None, X, seed=3, **options).log_weights
    assert torch.equal(first, ais(model, None, X, seed=3, **options).log_weights)
    assert not torch.equal(first, ais(model, None, X, seed=4, **options).log_weights)
    both = [bdmc(model, None, X, seed=3, **options) for _ in range(2)]
    assert torch.equal(both[0].upper, both[1].upper) and torch.equal(both[0].lower, both[1].lower)


def test_dtype_and_single_chain():
    result = ais(chain, None, CHAINED.float(), num_chains=1, num_steps=4, **FAST)
    assert result.log_weights.dtype == torch.float64 and result.acceptance.dtype == torch.float32
    assert result.standard_error.isnan().all() and result.num_chains == 1


def test_progress(capsys):
    ais(model, None, X, num_steps=3, num_chains=2, batch_size=20, progress=True, leapfrog_steps=1)
    moved = capsys.readouterr().err
    assert "100%" in moved and f"{2 * (20 + 50 + 2)}/{2 * (20 + 50 + 2)}" in moved
    ais(model, None, X, num_steps=2, num_chains=2, leapfrog_steps=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("function", [ais, bdmc])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "num_chains must be a whole number and at least 1"),
        ({"num_steps": 2.5}, "num_steps must be a whole number"),
        ({"leapfrog_steps": 0}, "leapfrog_steps must be"),
        ({"num_pilot_chains": -1}, "num_pilot_chains must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"schedule": "cosine"}, r"schedule must be one of \['linear', 'sigmoidal'\]"),
        ({"schedule": lambda t: t / 2}, "rise from 0 to 1"),
        ({"schedule": lambda t: (3 * t).sin() / 0.1411200080598672}, "rise from 0 to 1"),
        ({"schedule": lambda t: t[1:]}, "as many inverse temperatures"),
        ({"start": "posterior"}, "start must be 'prior' or 'guide'"),
        ({"start": "guide", "guide": None}, "start='guide' needs a guide"),
    ],
)
def test_bad_arguments(function, options, message):
    guide = options.get("guide", wide)
    with pytest.raises(ValueError, match=message):
        function(model, guide, X, **{n: v for n, v in options.items() if n != "guide"})


def in_plate(latent):
    """A program whose latents ``latent()`` draws, and whose observation adds them up."""

    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(latent(len(x)), 1.0), obs=x)

    return program


def outside(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def masked(n):
    with poutine.mask(mask=torch.arange(n) > 0):
        return pyro.sample("z", dist.Normal(0.0, 1.0))


def nested(n):
    with pyro.plate("parts", 3, dim=-2):
        return pyro.sample("z", dist.Normal(0.0, 1.0)).sum(-2)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (outside, "latent site 'w' lies outside the data plate"),
        (in_plate(lambda n: pyro.sample("y", dist.Bernoulli(0.5))), "latent site 'y' is discrete"),
        (in_plate(masked), "latent site 'z' is masked"),
        (in_plate(lambda n: pyro.sample("z", dist.Normal(0.0, 1.0).mask(torch.arange(n) > 0))), "'z' is masked"),
        (in_plate(nested), "nested plates"),
        (in_plate(lambda n: _tied(pyro.sample("z", dist.Normal(0.0, 1.0)))), "changes with the latents of its batch"),
        (in_plate(lambda n: pyro.sample("z", dist.Normal(0.0, 1.0)) + torch.rand(n)), "to the next|otherwise than"),
    ],
)
@pytest.mark.parametrize("function", [ais, bdmc])
def test_refused_programs(function, program, message):
    with pytest.raises(ValueError, match=message):
        function(program, None, torch.zeros(5), num_steps=3)


def _tied(z):
    return z - z.mean(-1, keepdim=True)


def test_refused_guides():
    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), K, dtype=torch.float64), event_dim=1))

    def hidden(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x[:, 0], 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u.unsqueeze(-1), 1.0).expand([*u.shape, K]).to_event(1))

    def partial(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(len(x)) > 2):
            pyro.sample("z", wide_posterior(x))

    for guide, message in (
        (point, "no density to start"),
        (hidden, "no density to start"),
        (partial, "guide's latent"),
    ):
        with pytest.raises(ValueError, match=message):
            ais(model, guide, X, start="guide", num_steps=2)


def test_factors_of_the_objective_alone_are_no_weights_of_simulated_data():
    def with_term(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            with pyro.poutine.infer_config(config_fn=lambda site: {"objective_only": site["name"] == "term"}):
                pyro.factor("term", z.sum(-1))
            pyro.sample("x", noise(decode(z)), obs=x)

    one, other = (bdmc(m, None, X, num_steps=2, num_chains=2, seed=1) for m in (model, with_term))
    torch.testing.assert_close(one.lower, other.lower)


def test_what_cannot_be_simulated_is_refused():
    def weighed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.factor("bonus", z.sum(-1))
            pyro.sample("x", noise(decode(z)), obs=x)

    with pytest.raises(ValueError, match=r"factors \['bonus'\]"):
        bdmc(weighed, None, X, num_steps=2)

    def peeking(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.1 * x[:, :K], 1.0).to_event(1))
            pyro.sample("x", noise(decode(z)), obs=x)

    with pytest.raises(ValueError, match="looks at them otherwise than as data"):
        bdmc(peeking, None, X, num_steps=2)
