"""KL weights, free bits, and the handlers that keep Pyro's global state out of the way."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, trace_elbo
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from pyro_vaes.guides import AmortizedMultivariateNormal
from pyro_vaes.infer import (
    MMD_ELBO,
    AggregatePosterior_ELBO,
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    MutualPosterior_ELBO,
    StickingTheLanding_ELBO,
    scale_latents,
)
from pyro_vaes.infer.bounds.host_sync import without_host_sync
from pyro_vaes.nn import MultivariateNormalHead
from pyro_vaes.programs import local_parameters
from pyro_vaes.programs.aside import ParameterRecorder
from tests.infer.pairs import D, binary, binary_vae, function_pair, hierarchical_vae, linear_vae


def terms(vae, x, seed):
    """Log-likelihood and KL, sampled and analytic, of the very draw that a loss with this seed makes, summed."""
    pyro.set_rng_seed(seed)
    q = pyro.poutine.trace(vae.guide).get_trace(x)
    p = pyro.poutine.trace(pyro.poutine.replay(vae.model, trace=q)).get_trace(x)
    p.compute_log_prob()
    q.compute_log_prob()
    sites = [n for n in q.nodes if n.startswith("z")]
    kl = {n: q.nodes[n]["log_prob_sum"] - p.nodes[n]["log_prob_sum"] for n in sites}
    analytic = sum(torch.distributions.kl_divergence(q.nodes[n]["fn"], p.nodes[n]["fn"]).sum() for n in sites)
    return p.nodes["x"]["log_prob_sum"], kl, analytic


BOUNDS = {
    "trace": Trace_ELBO,
    "mean field": TraceMeanField_ELBO,
    "enum": lambda: TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("use", ["context", "wrapper"])
def test_scale_latents(bound, use):
    vae, x, beta = linear_vae(), torch.randn(20, D), 0.3
    likelihood, kl, analytic = terms(vae, x, 7)
    weighted = beta * (analytic if bound == "mean field" else kl["z"])
    loss = BOUNDS[bound]()
    pyro.set_rng_seed(7)
    if use == "context":
        with scale_latents(beta):
            value = loss.loss(vae.model, vae.guide, x)
    else:
        value = loss.loss(scale_latents(beta)(vae.model), scale_latents(beta)(vae.guide), x)
    assert value == pytest.approx((weighted - likelihood).item(), rel=1e-5)


def test_scale_latents_by_site_and_in_an_svi_step():
    vae, x = hierarchical_vae(top_down=True), binary()
    likelihood, kl, _ = terms(vae, x, 3)
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())
    pyro.set_rng_seed(3)
    with scale_latents({"z_1": 0.5, "z_2": 2.0}):
        value = svi.step(x)
    assert value == pytest.approx((0.5 * kl["z_1"] + 2.0 * kl["z_2"] - likelihood).item(), rel=1e-5)
    pyro.set_rng_seed(3)
    with scale_latents({"z_2": 0.25}):
        value = svi.evaluate_loss(x)
    assert value == pytest.approx((kl["z_1"] + 0.25 * kl["z_2"] - likelihood).item(), rel=1e-5)


def test_scale_latents_of_a_site_that_the_guide_enumerates():
    x, beta = binary(10), 0.4
    logits, means = torch.randn(10, 3), torch.randn(3, D)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=means[y]).to_event(1), obs=x)

    @pyro.infer.config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits))

    q = dist.Categorical(logits=logits)
    log_x = dist.Bernoulli(logits=means.unsqueeze(1)).to_event(1).log_prob(x).T  # (10, 3)
    kl = torch.distributions.kl_divergence(q, dist.Categorical(logits=torch.zeros(3))).sum()
    with scale_latents(beta):
        value = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert value == pytest.approx((beta * kl - (q.probs * log_x).sum()).item(), rel=1e-5)


@pytest.mark.parametrize("beta", [0, 0.0, -1.0, float("nan"), {"z": 0.0}, {"z": 1.0, "y": -0.1}])
def test_scale_latents_needs_positive_weights(beta):
    with pytest.raises(ValueError, match=r"must be positive.*start a warm-up at"):
        scale_latents(beta)


def gradient(loss, vae, x, seed=2):
    pyro.set_rng_seed(seed)
    vae.zero_grad()
    value = loss.differentiable_loss(vae.model, vae.guide, x)
    value.backward()
    return value.detach(), {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in vae.named_parameters()
    }


@pytest.mark.parametrize("vae", [binary_vae, lambda: hierarchical_vae(top_down=False)])
def test_free_bits_of_zero_nats_are_the_plain_bound(vae):
    vae, x = vae(), binary()
    for per_unit in (False, True):
        value, gradients = gradient(FreeBits_ELBO(0.0, per_unit=per_unit), vae, x)
        wanted, others = gradient(Trace_ELBO(), vae, x)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert all(torch.allclose(gradients[n], others[n], atol=1e-4) for n in others)


def test_below_the_floor_the_kl_has_no_gradient():
    vae, x = linear_vae(), torch.randn(30, D)
    likelihood, _, _ = terms(vae, x, 2)
    value, gradients = gradient(FreeBits_ELBO(50.0), vae, x)
    assert value.item() == pytest.approx((30 * 50.0 - likelihood).item(), rel=1e-5)
    pyro.set_rng_seed(2)
    vae.zero_grad()
    (-vae.likelihood(vae.decoder(vae.guide(x))).log_prob(x).sum()).backward()
    assert all(torch.allclose(p.grad, gradients[n], atol=1e-3) for n, p in vae.named_parameters() if p.grad is not None)


def test_free_bits_per_unit_and_per_level():
    # a floor that only some groups are under: the value is that of the formula, group by group
    vae, x = hierarchical_vae(top_down=True), binary()
    pyro.set_rng_seed(2)
    q = pyro.poutine.trace(vae.guide).get_trace(x)
    p = pyro.poutine.trace(pyro.poutine.replay(vae.model, trace=q)).get_trace(x)
    units, sites = [], []
    for name in ("z_1", "z_2"):
        value = q.nodes[name]["value"]
        ratio = q.nodes[name]["fn"].base_dist.log_prob(value) - p.nodes[name]["fn"].base_dist.log_prob(value)
        units += list(ratio.mean(0))
        sites.append(ratio.sum(-1).mean())
    likelihood = p.nodes["x"]["fn"].log_prob(x).sum()
    for per_unit, tensors in ((True, units), (False, sites)):
        groups = [g.item() for g in tensors]
        floor = (min(groups) + max(groups)) / 2
        wanted = len(x) * sum(max(floor, g) for g in groups) - likelihood
        value, _ = gradient(FreeBits_ELBO(floor, per_unit=per_unit), vae, x)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_floor_of_free_bits_is_per_datum_under_subsampling_and_weights():
    """A subsampled plate multiplies the whole bound; the floor is in nats per datum all the same."""
    x = torch.randn(20, D)
    vae = linear_vae()

    def sized(program, size):
        def run(x):
            with pyro.poutine.scale(scale=size / len(x)):
                return program(x)

        return run

    for floor in (0.0, 0.01, 3.0, 50.0):  # the last is above the KL, the others below
        loss = FreeBits_ELBO(floor)
        pyro.set_rng_seed(1)
        plain = loss.loss(vae.model, vae.guide, x)
        pyro.set_rng_seed(1)
        assert loss.loss(sized(vae.model, 500), sized(vae.guide, 500), x) == pytest.approx(25 * plain, rel=1e-5)
    pyro.set_rng_seed(1)
    mask = torch.arange(20) < 10
    masked = loss.loss(*(pyro.poutine.mask(p, mask=mask) for p in (vae.model, vae.guide)), x)
    x[~mask] += 100.0  # rows that are masked do not count, whatever they hold
    pyro.set_rng_seed(1)
    assert loss.loss(*(pyro.poutine.mask(p, mask=mask) for p in (vae.model, vae.guide)), x) == pytest.approx(masked)
    assert 0.2 * plain < masked < 0.8 * plain


def test_free_bits_that_cannot_be():
    with pytest.raises(ValueError, match="cannot be negative"):
        FreeBits_ELBO(-0.1)
    x = torch.randn(5, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

    with pytest.raises(ValueError, match=r"factorised distributions at the site 'z'.*per_unit=False"):
        FreeBits_ELBO(0.1, per_unit=True).loss(model, model, x)


def test_free_bits_count_no_deterministic_statement_as_a_density():
    x = torch.randn(5, 3)

    def guide(x, *, say):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z_1", dist.Normal(torch.ones(2), 0.5).to_event(1))
            pyro.sample("z_2", dist.Normal(torch.zeros(2), 0.9).to_event(1))
            if say:
                pyro.deterministic("twice", 2 * z, event_dim=1)

    def model(x):
        with pyro.plate("data", len(x)):
            for name in ("z_1", "z_2"):
                pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))

    losses = []
    for say in (False, True):
        pyro.set_rng_seed(1)
        losses.append(FreeBits_ELBO(0.5).loss(model, functools.partial(guide, say=say), x))
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match=r"does not draw the model's latent sites \['z_1', 'z_2'\]"):
        FreeBits_ELBO(0.5).loss(model, lambda x: None, x)


@pytest.mark.parametrize("handler", [pyro.poutine.mask, pyro.poutine.scale], ids=["mask", "scale"])
def test_free_bits_of_zero_nats_weigh_guide_and_model_apart(handler):
    vae, x = linear_vae(), torch.randn(8, D)
    guide = AmortizedMultivariateNormal(vae.model, MultivariateNormalHead(D, 2))
    model = handler(vae.model, **({"mask": torch.arange(8) < 4} if handler is pyro.poutine.mask else {"scale": 2.0}))
    losses = []
    for bound in (Trace_ELBO(), FreeBits_ELBO(0.0)):
        guide(x)
        pyro.set_rng_seed(1)
        losses.append(bound.loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_bounds_without_host_sync_restore_pyro():
    item, warn = trace_elbo.torch_item, trace_elbo.warn_if_nan
    with pytest.raises(KeyError), without_host_sync():
        assert trace_elbo.torch_item is not item
        vae = binary_vae()
        assert isinstance(Trace_ELBO().loss(vae.model, vae.guide, binary()), torch.Tensor)
        raise KeyError
    assert trace_elbo.torch_item is item and trace_elbo.warn_if_nan is warn
    assert isinstance(Trace_ELBO().loss(vae.model, vae.guide, binary()), float)


def test_local_parameters_hide_and_restore_the_store():
    x = binary(5)
    model, guide, _ = function_pair(seed=0)
    SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(x)
    store = pyro.get_param_store()
    outside = dict(store.items())
    other, _, networks = function_pair(seed=1)
    with local_parameters():
        assert not store.keys()
        trace = pyro.poutine.trace(other).get_trace(x)
        assert all(
            trace.nodes[n]["value"] is p for n, p in zip(trace.param_nodes, networks[1].parameters(), strict=True)
        )
        pyro.param("made inside", torch.ones(1))
    assert set(store.keys()) == {*outside, "made inside"}
    assert all(store[n] is v for n, v in outside.items())


def test_networks_of_one_name_keep_their_own_parameters():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    with local_parameters(), ParameterRecorder() as recorder:
        for net in (first, second):
            pyro.module("net", net)
    wanted = [*first.parameters(), *second.parameters()]
    assert all(value is p for (_, value), p in zip(recorder.found, wanted, strict=True))


def test_scale_latents_names_sites_that_do_not_occur():
    vae, x = binary_vae(), binary(5)
    with pytest.raises(ValueError, match=r"weighs \['zz'\], but the latent sites are \['z'\]"):
        with scale_latents({"zz": 0.5}):
            Trace_ELBO().loss(vae.model, vae.guide, x)
    guide = AmortizedMultivariateNormal(two_sites, MultivariateNormalHead(x.shape[1], 2))
    with pytest.raises(ValueError, match="one weight for all"), scale_latents({"a": 0.5}):
        guide(x)
    assert not _PYRO_STACK, "no handler stays behind"


def two_sites(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b.unsqueeze(-1), 1.0).expand([len(x), x.shape[1]]).to_event(1), obs=x)


@pytest.mark.parametrize(
    "bound",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        FreeBits_ELBO(1.0),
        ImportanceWeighted_ELBO(4),
        StickingTheLanding_ELBO(2),
        StickingTheLanding_ELBO(2, vectorize_particles=True, max_plate_nesting=1),
        DReG_ELBO(4),
        MMD_ELBO(2.0),
        MMD_ELBO(2.0, kl_weight=0.5),
        AggregatePosterior_ELBO(),
        MutualPosterior_ELBO(eta=1.0),
    ],
    ids=lambda bound: type(bound).__name__,
)
def test_factors_of_the_objective_alone_count_once_in_every_bound(bound):
    """Values and gradients: those of the bound without the factor, and those of the factor."""
    torch.set_default_dtype(torch.float64)
    vae, x, weight = linear_vae(), torch.randn(20, D), nn.Parameter(torch.randn(D))

    def at_seed(*, factor):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", vae.encoder(x))
                if factor:
                    with pyro.poutine.infer_config(config_fn=lambda _: {"objective_only": True}):
                        pyro.factor("term", (x @ weight).square(), has_rsample=True)

        pyro.set_rng_seed(5)
        loss = bound.differentiable_loss(vae.model, guide, x)
        parameters = [*vae.parameters(), weight]
        return loss, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    (loss, gradients), (without, others) = at_seed(factor=True), at_seed(factor=False)
    term = (x @ weight).square().sum()
    torch.testing.assert_close(loss, without + term)
    torch.testing.assert_close(gradients[-1], torch.autograd.grad(term, weight)[0])
    for one, other in zip(gradients[:-1], others[:-1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "bound",
    [Trace_ELBO(), ImportanceWeighted_ELBO(4), DReG_ELBO(4), StickingTheLanding_ELBO(), FreeBits_ELBO(1.0)],
    ids=lambda bound: type(bound).__name__,
)
def test_factors_of_the_objective_in_the_model_keep_their_whole_gradient(bound):
    """One that is linear in the draws: its gradient is the same for every draw, whatever the draws' weights."""
    torch.set_default_dtype(torch.float64)
    vae, x, loc = linear_vae(), torch.randn(20, D), nn.Parameter(torch.zeros(2))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x), 2), 0.8).to_event(1))

    def at_seed(*, factor):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", vae.likelihood(vae.decoder(z)), obs=x)
                if factor:
                    with pyro.poutine.infer_config(config_fn=lambda site: {"objective_only": site["name"] == "term"}):
                        pyro.factor("term", 3.0 * z.sum(-1))

        pyro.set_rng_seed(5)
        return torch.autograd.grad(bound.differentiable_loss(model, guide, x), loc)[0]

    torch.testing.assert_close(at_seed(factor=True) - at_seed(factor=False), torch.full((2,), -3.0 * len(x)))


def test_factors_of_the_objective_alone_stay_outside_the_logarithm():
    torch.set_default_dtype(torch.float64)
    vae, x, drawn = linear_vae(), torch.randn(20, D), []

    def guide(x, *, factor=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.encoder(x))
            drawn.append(z.square().sum(-1))  # (K, B)
            if factor:
                with pyro.poutine.infer_config(config_fn=lambda _: {"objective_only": True}):
                    pyro.factor("term", drawn[-1], has_rsample=True)

    bound, found = ImportanceWeighted_ELBO(4), []
    for program in (guide, lambda x: guide(x, factor=False)):
        pyro.set_rng_seed(5)
        found.append(bound.loss(vae.model, program, x))
    assert found[0] == pytest.approx(found[1] + drawn[-1].mean(0).sum().item(), abs=1e-9)
