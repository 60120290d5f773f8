"""Guides that compose by site: exact on linear-Gaussian programs of every shape,
refusals that teach."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_vaes import load_weights, save_weights
from pyro_vaes.guides import (
    Amortized,
    AmortizedCategorical,
    AmortizedLaplace,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    ComposedGuide,
    Enumerated,
    Free,
    FromPrior,
    SemiAmortized,
    geometric,
)
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead

TIGHT = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.set_default_dtype(torch.float64)


def elbo(model, guide, *args, loss=None):
    return -(loss or Trace_ELBO()).loss(model, guide, *args)


def constant(value):
    return torch.tensor(float(value))


class Column(nn.Module):
    """A start for Laplace updates: the data themselves."""

    def forward(self, x):
        return x.unsqueeze(-1)


# P1: masks


def masked_pairs(x, how):
    """z ~ N(0, 1), x ~ N(z, 1); every second row is masked."""
    mask = torch.arange(len(x)) % 2 == 0
    with pyro.plate("data", len(x)):
        if how == "poutine.mask":
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        elif how == "dist.mask":
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).mask(mask))
            pyro.sample("x", dist.Normal(z, 1.0).mask(mask), obs=x)
        else:
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), 1]).to_event(1).mask(mask))
            pyro.sample("x", dist.Normal(z.squeeze(-1), 1.0).mask(mask), obs=x)


RULES = {
    "amortized": lambda: Amortized(lambda x: (x / 2, constant(0.5**0.5))),
    "normal": lambda: AmortizedNormal.rule(lambda_module(lambda x: (x.unsqueeze(-1) / 2, constant(0.5**0.5)))),
    "full": lambda: AmortizedMultivariateNormal.rule(
        lambda_module(lambda x: dist.MultivariateNormal(x.unsqueeze(-1) / 2, 0.5 * torch.eye(1)))
    ),
    "laplace": lambda: AmortizedLaplace.rule(Column(), steps=12, schedule=geometric),
    "semi": lambda: SemiAmortized.rule(lambda_module(lambda x: (x.unsqueeze(-1) / 2, constant(0.5**0.5))), steps=0),
    "function": lambda: lambda site: dist.Normal(site.args[0] / 2, 0.5**0.5),
}


def lambda_module(function):
    class Function(nn.Module):
        def forward(self, x):
            return function(x)

    return Function()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["poutine.mask", "dist.mask"])
def test_p1_masked_rows_have_log_weight_zero_and_the_others_the_evidence(rule, how):
    def model(x):
        masked_pairs(x, how)

    x = torch.randn(8)
    guide = ComposedGuide(model, {"z": RULES[rule]()})
    trace = poutine.trace(guide).get_trace(x)
    replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    for t in (trace, replayed):
        t.compute_log_prob()
    log_q = sum(s["log_prob"] for s in trace.nodes.values() if s["type"] == "sample" and s["name"] != "data")
    log_p = replayed.nodes["z"]["log_prob"] + replayed.nodes["x"]["log_prob"]
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(x)
    evidence[1::2] = 0.0
    torch.testing.assert_close(log_p - log_q, evidence, rtol=1e-9, atol=1e-9)
    assert elbo(model, guide, x) == pytest.approx(evidence.sum().item(), **TIGHT)
    assert torch.equal(log_q[1::2], torch.zeros(4))


def test_p1_obs_mask_needs_no_proposal_for_what_is_missing():
    mask = torch.tensor([True, False, True, False, True, True])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=mask)

    x = torch.randn(6)
    loc = torch.where(mask, x / 2, 0.0)
    scale = torch.where(mask, 0.5**0.5, 1.0)
    guide = ComposedGuide(model, {"z": Amortized(lambda x: (loc, scale))})
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(x)[mask].sum().item()
    for _ in range(3):
        assert elbo(model, guide, x) == pytest.approx(evidence, **TIGHT)
    assert guide.describe_rule("x_unobserved") == "its prior"
    # a rule for "x" would stand for it too
    named = ComposedGuide(model, {"z": FromPrior(), "x": FromPrior()})
    assert named.describe_rule("x_unobserved") == "'x': FromPrior"


# P2: state spaces


A, Q, R = 0.8, 0.6, 0.5  # z_t = A z_{t-1} + Q noise, x_t = z_t + R noise


def state_space(x, lengths, gaps=None):
    """Sequences of several lengths: steps behind the end are masked; gaps leave
    observations out."""
    with pyro.plate("sequences", len(x)):
        z = torch.zeros(len(x))
        for t in range(x.shape[1]):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(A * z, Q))
                seen = True if gaps is None else ~gaps[:, t]
                with poutine.mask(mask=seen):
                    pyro.sample(f"x_{t}", dist.Normal(z, R), obs=x[:, t])


def smoother(x, lengths, gaps=None):
    """q(z_t | z_{t-1}, x_t..x_T) of every step as (gain, offset, scale), and the log
    evidence."""
    evidence, tables = [], []
    for i, length in enumerate(lengths.tolist()):
        # the joint normal of all steps
        steps = torch.arange(length)
        ends = torch.minimum(steps[:, None], steps[None, :])
        lags = (steps[:, None] - steps[None, :]).abs()
        variance = Q**2 * (1 - A ** (2 * (ends + 1))) / (1 - A**2)
        cov = A**lags * variance
        seen = torch.ones(length, dtype=torch.bool) if gaps is None else ~gaps[i, :length]
        noisy = cov[seen][:, seen] + R**2 * torch.eye(int(seen.sum()))
        observed = x[i, :length][seen]
        zero = torch.zeros(len(observed))
        evidence.append(dist.MultivariateNormal(zero, noisy).log_prob(observed))

        gain = torch.linalg.solve(noisy, cov[seen]).T
        mean, post = gain @ observed, cov - gain @ cov[seen]
        rows = []
        for t in range(length):
            if t == 0:
                rows.append((0.0, mean[0], post[0, 0].sqrt()))
                continue
            slope = post[t, t - 1] / post[t - 1, t - 1]
            spread = post[t, t] - slope * post[t, t - 1]
            rows.append((slope, mean[t] - slope * mean[t - 1], spread.sqrt()))
        tables.append(rows + [(0.0, constant(0), constant(1))] * (x.shape[1] - length))
    return tables, torch.stack(evidence)


@pytest.mark.parametrize("has_gaps", [False, True])
def test_p2_the_exact_smoother_gives_the_kalman_evidence(has_gaps):
    lengths = torch.tensor([1, 2, 3, 4, 5])
    x = torch.randn(5, 5)
    gaps = torch.rand(5, 5) < 0.4 if has_gaps else None
    if gaps is not None:
        gaps[range(5), lengths - 1] = False  # something is seen of each
    tables, evidence = smoother(x, lengths, gaps)

    def step(x, lengths, gaps=None, site=None, previous=None):
        t = int(site.name[2:])
        gain, offset, scale = (torch.as_tensor([row[t][k] for row in tables]) for k in range(3))
        z = 0.0 if previous is None else previous
        return gain * z + offset, scale

    rule = Amortized(step, given=lambda name: {f"z_{int(name[2:]) - 1}": "previous"})
    guide = ComposedGuide(state_space, {"z_*": rule})
    for _ in range(3):
        assert elbo(state_space, guide, x, lengths, gaps) == pytest.approx(evidence.sum().item(), **TIGHT)


def test_a_gap_inside_a_sequence_is_drawn_from_its_prior():
    """A masked step with observed descendants: exact with the exact posteriors of the
    others."""

    def model(x):
        with pyro.plate("data", len(x)):
            one = pyro.sample("z_0", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=torch.zeros(len(x), dtype=torch.bool)):
                two = pyro.sample("z_1", dist.Normal(A * one, Q))
            pyro.sample("x", dist.Normal(two, R), obs=x)

    def first(x):
        variance = 1 / (1 + A**2 / (Q**2 + R**2))
        return variance * A * x / (Q**2 + R**2), constant(variance**0.5)

    x = torch.randn(4)
    guide = ComposedGuide(
        model,
        {"z_0": Amortized(first), "z_1": Amortized(lambda x: (x + 40, constant(9)))},
    )
    evidence = dist.Normal(0.0, (A**2 + Q**2 + R**2) ** 0.5).log_prob(x).sum()
    terms = torch.tensor([elbo(model, guide, x) for _ in range(4000)])
    # log of the mean weight of all data together
    log_mean = terms.logsumexp(0) - math.log(len(terms))
    spread = (terms - terms.max()).exp()
    error = spread.std() / spread.mean() / len(terms) ** 0.5
    assert (log_mean - evidence).abs() < 4 * error


# P3: groups


P, V, S, T = 4, 3, 0.7, 0.5  # patients, visits, spread of visits, noise


def visits(x, dims=(-2, -1)):
    with pyro.plate("patients", P, dim=dims[0]):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("visits", V, dim=dims[1]):
            z = pyro.sample("z", dist.Normal(u, S))
            pyro.sample("x", dist.Normal(z, T), obs=x)


def visits_evidence(x):
    cov = torch.ones(V, V) + (S**2 + T**2) * torch.eye(V)
    return dist.MultivariateNormal(torch.zeros(V), cov).log_prob(x).sum().item()


def of_patient(x):
    precision = 1 + V / (S**2 + T**2)
    return x.sum(-1) / (S**2 + T**2) / precision, constant(precision**-0.5)


def of_visit(x, u):
    precision = 1 / S**2 + 1 / T**2
    return (u / S**2 + x / T**2) / precision, constant(precision**-0.5)


INNER = {
    "amortized": lambda: Amortized(of_visit, given=["u"]),
    "laplace": lambda: AmortizedLaplace.rule(Column(), steps=12, schedule=geometric),
}


@pytest.mark.parametrize("inner", INNER)
def test_p3_the_exact_posterior_of_patients_and_visits(inner):
    x = torch.randn(P, V)
    guide = ComposedGuide(visits, {"u": Amortized(of_patient), "z": INNER[inner]()})
    assert elbo(visits, guide, x) == pytest.approx(visits_evidence(x), **TIGHT)
    particles = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2)
    assert elbo(visits, guide, x, loss=particles) == pytest.approx(visits_evidence(x), **TIGHT)


def test_p3_one_batch_dimension_per_plate_is_placed_by_nesting():
    """Pyro gives the outer plate the right-most dimension: a network's (P, V) is placed
    as (V, P)."""

    def transposed(x):
        visits(x.T, dims=(-1, -2))

    x = torch.randn(P, V)
    rules = {
        "u": Amortized(of_patient),
        "z": Amortized(lambda x, u: of_visit(x, u.unsqueeze(-1)), given=["u"]),
    }
    guide = ComposedGuide(transposed, rules)
    assert elbo(transposed, guide, x) == pytest.approx(visits_evidence(x), **TIGHT)


def test_p3_a_shape_along_the_wrong_plate_is_refused():
    """(P,) at a site of patients and visits with P = V would go along visits without a
    word."""

    def square(x):
        with pyro.plate("patients", 4, dim=-2), pyro.plate("visits", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = ComposedGuide(square, {"z": Amortized(lambda x: (x.mean(-1), constant(1)))})
    with pytest.raises(
        ValueError,
        match=r"'z' has the batch shape \(4,\).*\{'patients': 4, 'visits': 4\}",
    ):
        guide(torch.randn(4, 4))


def test_p3_three_levels():
    def model(x):
        with pyro.plate("clinics", 2, dim=-3):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
            with pyro.plate("patients", 3, dim=-2):
                u = pyro.sample("u", dist.Normal(c, 1.0))
                with pyro.plate("visits", 4, dim=-1):
                    pyro.sample("x", dist.Normal(u, T), obs=x)

    def of_clinic(x):
        within = 1 + T**2 / 4
        precision = 1 + 3 / within
        return x.mean(-1).sum(-1) / within / precision, constant(precision**-0.5)

    def of_patient(x, c):
        precision = 1 + 4 / T**2
        return (c.squeeze(-1) + x.sum(-1) / T**2) / precision, constant(precision**-0.5)

    x = torch.randn(2, 3, 4)
    rules = {"c": Amortized(of_clinic), "u": Amortized(of_patient, given=["c"])}
    patient = torch.ones(4, 4) + T**2 * torch.eye(4)
    cov = torch.ones(12, 12) + torch.block_diag(*[patient] * 3)
    evidence = dist.MultivariateNormal(torch.zeros(12), cov).log_prob(x.reshape(2, 12)).sum().item()
    assert elbo(model, ComposedGuide(model, rules), x) == pytest.approx(evidence, **TIGHT)
    laplace = {
        "c": Amortized(of_clinic),
        "u": AmortizedLaplace.rule(Means(), steps=12, schedule=geometric),
    }
    assert elbo(model, ComposedGuide(model, laplace), x) == pytest.approx(evidence, **TIGHT)


class Means(nn.Module):
    def forward(self, x):
        return x.mean(-1, keepdim=True)


def test_a_new_visit_of_a_known_patient():
    x = torch.randn(P, V)
    guide = ComposedGuide(visits, {"u": Amortized(of_patient), "z": Amortized(of_visit, given=["u"])})
    u = torch.randn(P, 1)
    q = guide.posterior("z", x, given={"u": u})
    torch.testing.assert_close(q.mean, of_visit(x, u)[0])
    assert q.batch_shape == (P, V)


# P4: globals


N = 12


def global_mean(x, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=size) as rows:
        z = pyro.sample("z", dist.Normal(w, S))
        pyro.sample("x", dist.Normal(z, T), obs=x[rows] if size else x)


def test_p4_a_global_beside_locals_is_exact_with_exact_rules():
    x = torch.randn(N)
    precision = 1 + N / (S**2 + T**2)

    def of_all(site):
        loc = site.args[0].sum() / (S**2 + T**2) / precision
        return dist.Normal(loc, precision**-0.5)

    guide = ComposedGuide(
        global_mean,
        {"w": of_all, "z": Amortized(lambda x, w: of_visit(x, w), given=["w"])},
    )
    cov = torch.ones(N, N) + (S**2 + T**2) * torch.eye(N)
    evidence = dist.MultivariateNormal(torch.zeros(N), cov).log_prob(x).item()
    assert elbo(global_mean, guide, x) == pytest.approx(evidence, **TIGHT)


@pytest.mark.parametrize("size", [None, 5])
def test_p4_free_parameters_learn_the_posterior_of_a_global(size):
    x = 1 + torch.randn(N)
    guide = ComposedGuide(
        global_mean,
        {"w": Free(), "z": Amortized(lambda x, w: of_visit(x, w), given=["w"])},
    )
    svi = SVI(
        global_mean,
        guide,
        pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.998}),
        Trace_ELBO(num_particles=8),
    )
    for _ in range(1200):
        svi.step(x, size=size)
    precision = 1 + N / (S**2 + T**2)
    q = guide.posterior("w", x, size=size)
    assert q.mean.item() == pytest.approx(x.sum().item() / (S**2 + T**2) / precision, abs=0.05)
    assert q.stddev.item() == pytest.approx(precision**-0.5, rel=0.15)


@pytest.mark.parametrize("kind", ["normal", "multivariate", "delta"])
@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(0.0, 1.0),
        dist.Gamma(2.0, 3.0),
        dist.Dirichlet(torch.ones(3)),
        dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2),
        dist.LKJCholesky(3, 1.0),
        dist.Uniform(1.0, 4.0),
    ],
    ids=lambda p: type(p).__name__,
)
def test_free_fits_any_support(prior, kind):
    def model():
        w = pyro.sample("w", prior)
        with pyro.plate("rows", 3):
            v = pyro.sample("v", prior)
        return w, v

    guide = ComposedGuide(model, {"[vw]": Free(kind)})
    values = guide()
    assert values["w"].shape == prior.event_shape and values["v"].shape == (
        3,
        *prior.event_shape,
    )
    assert prior.support.check(values["v"]).all()
    saved = guide.state_dict()
    again = ComposedGuide(model, {"[vw]": Free(kind)})  # which has seen no batch
    again.load_state_dict(saved)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in guide.named_parameters()}
    pyro.set_rng_seed(1)
    one = guide()
    pyro.set_rng_seed(1)
    assert torch.equal(again()["v"], one["v"])


def test_weights_are_loaded_before_any_batch_is_seen(tmp_path):
    def make():
        rules = {"w": Free("multivariate"), "z": Amortized(NormalHead(1, 1))}
        return ComposedGuide(model, rules)

    def model(x):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x, guide, again = torch.randn(5, 1), make(), make()
    guide(x)
    save_weights(tmp_path / "saved", model, guide)
    load_weights(tmp_path / "saved", model, again)
    draws = []
    for one in (guide, again):
        pyro.set_rng_seed(0)
        draws.append(one(x)["z"])
    assert torch.equal(*draws)


def test_free_rows_of_a_plate_that_subsamples():
    def model(size=None):
        with pyro.plate("rows", 6, subsample_size=size) as rows:
            pyro.sample("w", dist.Normal(10.0 * rows, 1e-9))

    guide = ComposedGuide(model, {"w": Free("delta")})
    every = guide()["w"]
    trace = poutine.trace(guide).get_trace(2)
    assert torch.equal(trace.nodes["w"]["value"], every[trace.nodes["rows"]["value"]])


# P5: discrete latents


WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MEANS = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)


def mixture(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(MEANS[c], S))
        pyro.sample("x", dist.Normal(z, T), obs=x)


def cluster_logits(x):
    return dist.Normal(MEANS, (S**2 + T**2) ** 0.5).log_prob(x.unsqueeze(-1)) + WEIGHTS.log()


def broadcasting(x, c):
    return of_visit(x, MEANS[c])


def concatenating(x, c):
    """A network that knows nothing of dimensions on the left of the data."""
    both = torch.cat([x.unsqueeze(-1), MEANS[c].unsqueeze(-1)], -1)
    return of_visit(both[:, 0], both[:, 1])


@pytest.mark.parametrize("network", [broadcasting, concatenating])
@pytest.mark.parametrize("is_enumerated", [True, False])
def test_p5_discrete_and_continuous_together_are_exact(network, is_enumerated):
    x = torch.randn(7)
    classify = AmortizedCategorical(cluster_logits, enumerate=None if is_enumerated else False)
    guide = ComposedGuide(mixture, {"c": classify, "z": Amortized(network, given=["c"])})
    evidence = cluster_logits(x).logsumexp(-1).sum().item()
    loss = TraceEnum_ELBO(max_plate_nesting=1) if is_enumerated else Trace_ELBO()
    assert elbo(mixture, guide, x, loss=loss) == pytest.approx(evidence, **TIGHT)


def test_p5_summed_out_in_the_model():
    x = torch.randn(3)

    def wide(x):
        return x, constant(1.5)

    guide = ComposedGuide(mixture, {"c": Enumerated(), "z": Amortized(wide)})
    assert "c" not in poutine.trace(guide).get_trace(x).nodes

    def exact(z):
        """E log p(x, z) - log q(z) at these draws, with c summed out by hand."""
        prior = (dist.Normal(MEANS, S).log_prob(z.unsqueeze(-1)) + WEIGHTS.log()).logsumexp(-1)
        return (prior + dist.Normal(z, T).log_prob(x) - dist.Normal(x, 1.5).log_prob(z)).sum().item()

    pyro.set_rng_seed(3)
    found = elbo(mixture, guide, x, loss=TraceEnum_ELBO(max_plate_nesting=1))
    pyro.set_rng_seed(3)
    trace = poutine.trace(guide).get_trace(x)
    assert found == pytest.approx(exact(trace.nodes["z"]["value"]), **TIGHT)


def test_one_that_is_left_out_cannot_be_given():
    guide = ComposedGuide(mixture, {"c": Enumerated(), "z": Amortized(broadcasting, given=["c"])})
    with pytest.raises(ValueError, match=r"'z' is given 'c', which Enumerated"):
        guide(torch.randn(3))


@pytest.mark.parametrize(
    ("prior", "logits"),
    [
        (dist.Categorical(torch.ones(4)), (5, 4)),
        (dist.OneHotCategorical(torch.ones(4)), (5, 4)),
        (dist.OneHotCategoricalStraightThrough(torch.ones(4)), (5, 4)),
        (dist.Bernoulli(0.3), (5, 1)),
        (dist.Bernoulli(torch.full((4,), 0.3)).to_event(1), (5, 4)),
        (dist.Categorical(torch.ones(3, 4)).to_event(1), (5, 3, 4)),
    ],
    ids=["categorical", "one-hot", "straight-through", "bernoulli", "bits", "several"],
)
def test_the_family_of_a_discrete_prior(prior, logits):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", prior)

    guide = ComposedGuide(model, {"c": AmortizedCategorical(lambda x: torch.zeros(logits))})
    q = guide.posterior("c", torch.zeros(5))
    assert q.event_shape == prior.event_shape and q.batch_shape == (5,)
    assert guide(torch.zeros(5))["c"].shape == (5, *prior.event_shape)
    wrong = ComposedGuide(model, {"c": AmortizedCategorical(lambda x: torch.zeros(*logits[:-1], 7))})
    with pytest.raises(ValueError, match=r"logits of the .*'c'"):
        wrong(torch.zeros(5))


# given


def two_levels(x):
    with pyro.plate("data", len(x)):
        high = pyro.sample("high", dist.Normal(0.0, 1.0))
        low = pyro.sample("low", dist.Normal(high, 1.0))
        mean = pyro.deterministic("mean", 2 * low)
        pyro.sample("x", dist.Normal(mean / 2, 1.0), obs=x)


def test_a_site_that_the_model_draws_later_is_drawn_first():
    """A bottom-up guide: q(low | x) q(high | low)."""
    rules = {
        "high": Amortized(lambda x, low: (low / 2, constant(0.5**0.5)), given=["low"]),
        "low": Amortized(lambda x: (2 * x / 3, constant((2 / 3) ** 0.5))),
    }
    x = torch.randn(6)
    guide = ComposedGuide(two_levels, rules)
    assert elbo(two_levels, guide, x) == pytest.approx(dist.Normal(0.0, 3**0.5).log_prob(x).sum().item(), **TIGHT)
    given = torch.randn(6)
    torch.testing.assert_close(guide.posterior("high", x, given={"low": given}).mean, given / 2)


def test_given_by_keyword_and_by_function():
    seen = []

    def network(x, above=None):
        seen.append(above)
        return x, constant(1)

    by_keyword = Amortized(network, given={"high": "above"})
    guide = ComposedGuide(two_levels, {"high": FromPrior(), "low": by_keyword})
    values = guide(torch.randn(4))
    assert seen.pop() is values["high"]

    by_function = Amortized(network, given=lambda name: {"high": "above", "nowhere": "none"})
    values = ComposedGuide(two_levels, {"high": FromPrior(), "low": by_function})(torch.randn(4))
    assert seen.pop() is values["high"]


REFUSED = {
    "ring": (
        {
            "high": Amortized(lambda x, low: x, given=["low"]),
            "low": Amortized(lambda x, high: x, given=["high"]),
        },
        r"each other's values in a ring: high -> low -> high",
    ),
    "typing error": (
        {"*": Amortized(lambda x, hgih: x, given=["hgih"])},
        r"'high' is given 'hgih'",
    ),
    "no rule": ({"high": Free()}, r"'low' has no rule; there are rules for \['high'\]"),
    "prior ahead": (
        {"high": Amortized(lambda x, low: x, given=["low"]), "low": FromPrior()},
        r"'low' follows its prior, so it cannot be drawn before",
    ),
    "wrong event": (
        {"*": Amortized(lambda x: (torch.zeros(4, 1), constant(1)))},
        r"batch shape \(4, 1\)",
    ),
    "no distribution": (
        {"*": lambda site: torch.zeros(4)},
        r"returned Tensor.*dist\.Delta",
    ),
    "no context": (
        {"*": Amortized(lambda x, context: x)},
        r"'high' asks for a context",
    ),
    "discrete": (
        {"*": AmortizedCategorical(lambda x: x)},
        r"AmortizedCategorical is for .*'high' is a Normal",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    rules, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ComposedGuide(two_levels, rules)(torch.zeros(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, {"z": Free()}), "model is a NoneType"),
        ((two_levels, {}), "rules must map"),
        ((two_levels, {3: Free()}), "key is the name of a latent site"),
        ((two_levels, {"z": 3}), "must be a Rule"),
        ((two_levels, {("high", "low"): Free()}), "need a joint rule"),
        ((two_levels, {"z": Free()}, 3), "context must be a network"),
    ],
)
def test_arguments_that_can_never_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        ComposedGuide(*arguments)


# joint rules


def test_a_joint_rule_over_a_tuple_is_the_exact_posterior():
    def model(x):
        with pyro.plate("data", len(x)):
            one = pyro.sample("one", dist.Normal(0.0, 1.0))
            two = pyro.sample("two", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(one + two, 1.0), obs=x)

    x = torch.randn(5)
    cov = torch.eye(2) - torch.ones(2, 2) / 3
    exact = lambda_module(lambda x: dist.MultivariateNormal((x / 3).unsqueeze(-1).expand(-1, 2), cov))
    evidence = dist.Normal(0.0, 3**0.5).log_prob(x).sum().item()

    class Zeros(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    for rule in (
        AmortizedMultivariateNormal.rule(exact),
        AmortizedLaplace.rule(Zeros(), steps=14, schedule=geometric),
    ):
        guide = ComposedGuide(model, {("one", "two"): rule})
        assert elbo(model, guide, x) == pytest.approx(evidence, **TIGHT)


def test_a_joint_rule_over_sites_in_different_plates_is_refused():
    rule = AmortizedMultivariateNormal.rule(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"lie in different plates .*'patients'"):
        ComposedGuide(visits, {("u", "z"): rule})(torch.randn(P, V))


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_pyros_autoguides_are_rules(auto):
    x = torch.randn(N)
    guide = ComposedGuide(
        global_mean,
        {"w": auto, "z": Amortized(lambda x, w: of_visit(x, w), given=["w"])},
    )
    svi = SVI(global_mean, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    before = guide(x, size=5)
    losses = [svi.step(x, size=5) for _ in range(3)]
    assert set(before) == {"w", "z"} and all(map(math.isfinite, losses))
    trace = poutine.trace(guide).get_trace(x, size=5)
    assert len(trace.nodes["data"]["value"]) == 5


# P7, P8 and what users do


class BayesianDecoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, 3)
        self.decoder.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))

    def forward(self, x, size=None):
        weight = self.decoder.weight  # drawn outside the plate
        with pyro.plate("data", N, subsample_size=size) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, T).to_event(1), obs=x[rows])


def test_p7_weights_of_a_decoder_beside_locals():
    x, model = torch.randn(N, 3), BayesianDecoder()
    guide = ComposedGuide(model, {"decoder.*": Free(), "z": Amortized(NormalHead(3, 2))})
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x, size=6) for _ in range(150)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert guide(x, size=6)["decoder.weight"].shape == (3, 2)


def test_p8_each_structure_is_a_program_of_its_own():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.Normal(0.0, 1.0))
            z = torch.zeros(len(x))
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(z + y, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    guide = ComposedGuide(
        model,
        {"y": FromPrior(), "z_*": Amortized(lambda x, y=None: (x[:, 0], constant(1)))},
    )
    for steps in (4, 6, 4):
        assert len(guide(torch.randn(5, steps))) == steps + 1
        assert len(guide(torch.randn(5, steps), torch.zeros(5))) == steps


class Backward(nn.Module):
    """An RNN over a sequence, from its end to its start."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 4, batch_first=True)

    def forward(self, x, lengths):
        states, _ = self.rnn(x.flip(1).unsqueeze(-1))
        return states.flip(1)


class Combine(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x, lengths, site, context, previous=None):
        t = int(site.name[2:])
        before = torch.zeros(len(x)) if previous is None else previous
        loc, log_scale = self.head(torch.cat([context[:, t], before.unsqueeze(-1)], -1)).unbind(-1)
        return loc, log_scale.exp()


def test_a_deep_markov_model_with_an_rnn_as_context():
    lengths, x = torch.tensor([5, 3, 2]), torch.randn(3, 5)
    calls = []
    context = Backward()
    context.register_forward_hook(lambda *_: calls.append(1))
    rule = Amortized(Combine(), given=lambda name: {f"z_{int(name[2:]) - 1}": "previous"})
    guide = ComposedGuide(state_space, {"z_*": rule}, context=context)
    svi = SVI(state_space, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x, lengths) for _ in range(200)]
    assert len(calls) == 200
    _, evidence = smoother(x, lengths)
    final = sum(losses[-50:]) / 50
    assert -evidence.sum() - 0.2 < final < sum(losses[:20]) / 20
    # a longer horizon than any in training
    assert guide(torch.randn(3, 8), torch.tensor([8, 8, 8]))["z_7"].shape == (3,)
    draws = Predictive(state_space, guide=guide, num_samples=6, parallel=True)(x, lengths)
    assert draws["z_4"].shape == (6, 3)


def test_scales_in_the_model_are_inherited():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.25):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = ComposedGuide(model, {"z": Amortized(lambda x: (x, constant(0.3)))})
    x = torch.randn(4)
    trace = poutine.trace(guide).get_trace(x)
    assert trace.nodes["z"]["scale"] == 0.25
    kl = torch.distributions.kl_divergence(dist.Normal(x, 0.3), dist.Normal(0.0, 1.0)).sum()
    z = trace.nodes["z"]["value"]
    with poutine.trace() as tr:
        poutine.replay(model, trace=trace)(x)
    likelihood = dist.Normal(z, 1.0).log_prob(x).sum()
    pyro.set_rng_seed(0)
    found = elbo(model, guide, x, loss=TraceMeanField_ELBO(num_particles=1))
    pyro.set_rng_seed(0)
    z = poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    likelihood = dist.Normal(z, 1.0).log_prob(x).sum()
    assert found == pytest.approx((likelihood - 0.25 * kl).item(), **TIGHT)
    assert tr.trace.nodes["z"]["scale"] == 0.25


def test_the_analytic_kl_of_a_masked_site():
    x = torch.randn(6)

    def model(x):
        masked_pairs(x, "poutine.mask")

    guide = ComposedGuide(model, {"z": Amortized(lambda x: (x, constant(0.3)))})
    pyro.set_rng_seed(0)
    found = elbo(model, guide, x, loss=TraceMeanField_ELBO())
    pyro.set_rng_seed(0)
    z = poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    kl = torch.distributions.kl_divergence(dist.Normal(x, 0.3), dist.Normal(0.0, 1.0))
    terms = dist.Normal(z, 1.0).log_prob(x) - kl
    assert found == pytest.approx(terms[::2].sum().item(), **TIGHT)


# one rule for all latents


@pytest.mark.parametrize("layer", ["batch norm", "dropout"])
def test_one_rule_is_bit_equal_to_the_amortised_normal(layer):
    """Loss, gradients, buffers and the generator."""
    torch.set_default_dtype(torch.float32)
    x = torch.bernoulli(torch.full((8, 12), 0.4))
    extra = nn.BatchNorm1d(12) if layer == "batch norm" else nn.Dropout(0.5)
    decoder = nn.Sequential(MLP(3, [6], 12), extra)
    encoder = Chain(MLP(12, [6], 6), nn.BatchNorm1d(6), NormalHead(6, 3))
    vae = VAE(encoder, decoder, BernoulliLikelihood(), 3)
    start = {name: value.clone() for name, value in vae.state_dict().items()}

    results = []
    guides = [
        vae.guide,
        AmortizedNormal(vae.model, encoder),
        ComposedGuide(vae.model, {"z": Amortized(encoder)}),
        ComposedGuide(vae.model, {"z": AmortizedNormal.rule(encoder)}),
    ]
    for guide in guides:
        vae.load_state_dict(start)
        pyro.set_rng_seed(5)
        if isinstance(guide, ComposedGuide):
            guide(x)  # the first look
            vae.load_state_dict(start)
            pyro.set_rng_seed(5)
        loss = Trace_ELBO().differentiable_loss(vae.model, guide, x)
        gradients = torch.autograd.grad(loss, list(vae.parameters()))
        buffers = [value.clone() for value in vae.buffers()]
        results.append([loss, *gradients, *buffers, torch.get_rng_state()])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_the_run_of_the_model_ends_behind_its_last_latent():
    runs = []

    def decoder(z):
        runs.append(1)
        return z

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(decoder(z), 1.0), obs=x)

    guide = ComposedGuide(model, {"z": Amortized(lambda x: (x, constant(1)))})
    guide(torch.zeros(3))
    runs.clear()
    guide(torch.zeros(3))
    assert not runs


def test_a_norm_before_the_last_latent_sees_a_batch_once_per_step():
    torch.set_default_dtype(torch.float32)
    norm = nn.BatchNorm1d(2)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            z = pyro.sample("z", dist.Normal(norm(y), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = ComposedGuide(model, {"[yz]": Amortized(NormalHead(2, 2))})
    x = torch.randn(5, 2)
    for step in range(1, 4):
        Trace_ELBO().differentiable_loss(model, guide, x)
        assert norm.num_batches_tracked == step


def test_labels_of_which_some_are_known_beside_a_library_size():
    """As in scanvi: y partly observed, z given y, and a size of every cell; exact at every draw."""
    known = torch.tensor([True, False, True, False, False])

    def cells(x, total, y):
        with pyro.plate("cells", len(x)):
            size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
            label = pyro.sample("y", dist.Categorical(WEIGHTS), obs=y, obs_mask=known)
            z = pyro.sample("z", dist.Normal(MEANS[label], S))
            pyro.sample("x", dist.Normal(z, T), obs=x)
            pyro.sample("total", dist.Normal(size.log(), 1.0), obs=total)

    guide = ComposedGuide(
        cells,
        {
            "size": Amortized(lambda x, total, y: (total / 2, constant(0.5**0.5))),
            "y": AmortizedCategorical(lambda x, total, y: cluster_logits(x)),
            "z": Amortized(lambda x, total, y, label: of_visit(x, MEANS[label]), given={"y": "label"}),
        },
    )
    x, total, y = torch.randn(5), torch.randn(5), torch.tensor([0, 0, 2, 0, 0])
    logits = cluster_logits(x)
    labelled = logits[range(5), y]
    evidence = torch.where(known, labelled, logits.logsumexp(-1))
    evidence = evidence + dist.Normal(0.0, 2.0**0.5).log_prob(total)
    for _ in range(3):
        assert elbo(cells, guide, x, total, y) == pytest.approx(evidence.sum().item(), **TIGHT)


def test_a_product_of_experts_with_a_missing_modality():
    there = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    noise = torch.tensor([0.5, 0.8], dtype=torch.float64)

    def modalities(x, there):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for i, name in enumerate(("image", "sound")):
                with poutine.mask(mask=there[:, i]):
                    pyro.sample(name, dist.Normal(z, noise[i]), obs=x[:, i])

    def experts(x, there):
        precision = there / noise**2
        total = 1 + precision.sum(-1)
        return (precision * x).sum(-1) / total, total**-0.5

    x = torch.randn(4, 2)
    guide = ComposedGuide(modalities, {"z": Amortized(experts)})
    evidence = 0.0
    for row, seen in zip(x, there, strict=True):
        if seen.any():
            cov = torch.ones(2, 2) + torch.diag(noise**2)
            part = dist.MultivariateNormal(torch.zeros(int(seen.sum())), cov[seen][:, seen])
            evidence = evidence + part.log_prob(row[seen]).item()
    for _ in range(3):
        assert elbo(modalities, guide, x, there) == pytest.approx(evidence, **TIGHT)


def test_crossed_plates():
    """P6: R = u + v + noise, with the exact factors of the joint normal as rules."""
    users, items = 3, 4

    def ratings(r):
        with pyro.plate("users", users, dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("items", items, dim=-2):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("users_", users, dim=-1), pyro.plate("items_", items, dim=-2):
            pyro.sample("r", dist.Normal(u + v, T), obs=r)

    r = torch.randn(items, users)
    design = torch.cat([torch.eye(users).repeat(items, 1), torch.eye(items).repeat_interleave(users, 0)], 1)
    precision = torch.eye(users + items) + design.T @ design / T**2
    cov = torch.linalg.inv(precision)
    mean = cov @ design.T @ r.flatten() / T**2
    prior = design @ design.T + T**2 * torch.eye(users * items)
    evidence = dist.MultivariateNormal(torch.zeros(users * items), prior).log_prob(r.flatten()).item()

    # q(v | u): v_i are independent given u; q(u) is a full normal, here as one auxiliary site
    def of_users(site):
        return dist.Normal(mean[:users], cov[:users, :users].diagonal().sqrt())

    def of_items(r, u):
        total = 1 + users / T**2
        return (r - u).sum(-1) / T**2 / total, constant(total**-0.5)

    guide = ComposedGuide(ratings, {"u": of_users, "v": Amortized(of_items, given=["u"])})
    terms = torch.tensor([elbo(ratings, guide, r) for _ in range(3000)])
    log_mean = terms.logsumexp(0) - math.log(len(terms))
    weights = (terms - terms.max()).exp()
    error = weights.std() / weights.mean() / len(terms) ** 0.5
    assert (log_mean - evidence).abs() < 4 * error
    assert guide(r)["v"].shape == (items, 1)
