"""Sticking the landing and the doubly reparameterised gradient: exact identities, expectations, and their use."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_vaes.guides import SemiAmortized
from pyro_vaes.infer import DReG_ELBO, ImportanceWeighted_ELBO, StickingTheLanding_ELBO, scale_latents
from pyro_vaes.infer.handlers import is_latent
from pyro_vaes.programs import Role, find_data_plate, over_particles, per_datum_log_prob, role
from pyro_vaes.programs.pair import Pair
from tests.diagnostics.linear import PPCA, K, X, model
from tests.zoo import GUIDES, MODELS, PAIRS

KINDS = ("linear_vae", "hierarchical_markovian_bottom_up", "hierarchical_skip_top_down", "user_constrained")
REPARAMETERISED = [(m, g) for m, g in PAIRS if m in KINDS and g != "mixture"]


def build(name, guide):
    torch.set_default_dtype(torch.float64)
    built = MODELS[name]()
    q = GUIDES[guide](built)
    if isinstance(q, SemiAmortized):
        q.noise = torch.ones_like  # the references run the guide twice, and must find the same steps
    pair = Pair(built.model, q)
    pair.discover(Trace_ELBO(), built.args)
    return built.model, q, built.args, pair.parameters


def flow_pair():
    """A guide with an inverse autoregressive flow, whose density away from its own draws needs the flow's inverse."""
    torch.set_default_dtype(torch.float64)
    built = MODELS["mlp_vae"]()
    flow = dist.transforms.affine_autoregressive(3, hidden_dims=[8])
    loc = torch.nn.Linear(16, 3)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc(x), 0.7).to_event(1), [flow]))

    return built.model, guide, built.args, {n: p for m in (flow, loc) for n, p in m.named_parameters()}


def gradients(loss, parameters):
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads, strict=True)}


def at_seed(loss, *args):
    pyro.set_rng_seed(5)
    return loss.differentiable_loss(*args)


def assert_same(one, two, atol=1e-9):
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-7, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def drawn_and_leaves(guide, args):
    """A trace of the guide, its draws as leaves, and the guide's trace given these."""
    trace = poutine.trace(guide).get_trace(*args)
    names = [n for n, s in prune_subsample_sites(trace).nodes.items() if s["type"] == "sample" and not s["is_observed"]]
    leaves = {n: trace.nodes[n]["value"].detach().requires_grad_() for n in names}
    fixed = Trace()  # replayed rather than conditioned on, so that the sites stay latent and weighted
    for name, site in trace.nodes.items():
        fixed.add_node(name, **{**site, "value": leaves.get(name, site.get("value"))})
    given = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args)
    return trace, leaves, given


def usual_without_score(q, args, usual, parameters):
    """Trace_ELBO's gradient less the score function, from a second run of the guide with all its draws held fixed."""
    with torch.enable_grad():
        pyro.set_rng_seed(5)
        _, _, given = drawn_and_leaves(q, args)
        score = gradients(given.log_prob_sum(lambda _, s: is_latent(s)), parameters)
    return {n: g - score[n] for n, g in gradients(usual, parameters).items()}


@pytest.mark.parametrize(("name", "guide"), [*REPARAMETERISED, ("flow", "flow")])
def test_sticking_the_landing_leaves_out_the_score_exactly(name, guide):
    p, q, args, parameters = flow_pair() if name == "flow" else build(name, guide)
    usual = at_seed(Trace_ELBO(), p, q, *args)
    ours = at_seed(StickingTheLanding_ELBO(), p, q, *args)
    torch.testing.assert_close(ours, usual, rtol=1e-9, atol=1e-9)
    assert_same(gradients(ours, parameters), usual_without_score(q, args, usual, parameters))
    with torch.no_grad():
        torch.testing.assert_close(at_seed(StickingTheLanding_ELBO(), p, q, *args), usual.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "guide"), [*REPARAMETERISED, ("flow", "flow")])
def test_dreg_is_the_formula_of_the_paper(name, guide):
    """sum_k v_k² (d log w_k / dz_k)(dz_k / dphi) for the guide, v_k d log p / dtheta for the model, from two runs."""
    p, q, args, parameters = flow_pair() if name == "flow" else build(name, guide)
    ours = at_seed(DReG_ELBO(3), p, q, *args)
    usual = at_seed(ImportanceWeighted_ELBO(3), p, q, *args)
    torch.testing.assert_close(ours, usual, rtol=1e-9, atol=1e-9)
    plate = find_data_plate(p, q, args)
    p3, q3 = (over_particles(f, 3, plate) for f in (p, q))
    pyro.set_rng_seed(5)
    trace, leaves, given = drawn_and_leaves(q3, args)
    replayed = poutine.trace(poutine.condition(p3, data=leaves)).get_trace(*args)
    log_p, log_q = (per_datum_log_prob(prune_subsample_sites(t), plate.dim, particles=True) for t in (replayed, given))
    v = (log_p - log_q).detach().softmax(0)
    h = torch.autograd.grad(((log_p - log_q) * v.square()).sum(), list(leaves.values()), retain_graph=True)
    terms = trace.log_prob_sum(lambda _, s: role(s) is Role.OBJECTIVE_ONLY) / 3  # once for each datum
    # from the last draw back to the first, which the later ones depend on: autograd does that on the guide's own graph
    surrogate = (v * log_p).sum() + sum((g * trace.nodes[n]["value"]).sum() for n, g in zip(leaves, h, strict=True))
    assert_same(gradients(ours, parameters), gradients(terms - surrogate, parameters))


# A chain with as many parameters as rows, so that one backward pass gives independent draws of each gradient.
ROWS = 20_000


class Rows:
    """z_1 ~ N(0, 1), z_2 ~ N(theta z_1, 1), rate ~ LogNormal(0, 1), x ~ N(z_2 + log rate, 1); x = 1 in each row."""

    def __init__(self, rows=ROWS):
        start = {"a": 0.3, "b": 0.2, "c": 0.6, "d": -0.2, "e": 0.1, "theta": 0.8}
        self.parameters = {
            n: torch.full((rows,), value, dtype=torch.float64, requires_grad=True) for n, value in start.items()
        }
        self.x = torch.ones(rows, dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z_1 = pyro.sample("z_1", dist.Normal(torch.zeros_like(x), 1.0))
            z_2 = pyro.sample("z_2", dist.Normal(self.parameters["theta"] * z_1, 1.0))
            rate = pyro.sample("rate", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z_2 + rate.log(), 1.0), obs=x)

    def guide(self, x):
        q = self.parameters
        with pyro.plate("data", len(x)):
            z_1 = pyro.sample("z_1", dist.Normal(q["a"], q["b"].exp()))
            pyro.sample("z_2", dist.Normal(q["c"] * z_1 + q["d"], 0.8))
            pyro.sample("rate", dist.LogNormal(q["e"], 0.5 * q["b"].exp()))


@pytest.mark.parametrize(
    ("ours", "usual"),
    [(StickingTheLanding_ELBO(), Trace_ELBO()), (DReG_ELBO(4), ImportanceWeighted_ELBO(4))],
    ids=["sticking", "dreg"],
)
def test_expected_gradients_are_those_of_the_bound(ours, usual):
    """n = 20,000 independent draws of each gradient: the means within 4 standard errors of their difference."""
    rows, drawn = Rows(), []
    for seed, loss in enumerate((ours, usual)):
        pyro.set_rng_seed(seed)
        drawn.append(gradients(loss.differentiable_loss(rows.model, rows.guide, rows.x), rows.parameters))
    for name in rows.parameters:
        one, two = (d[name] for d in drawn)
        error = ((one.var() + two.var()) / ROWS).sqrt()
        assert error < 0.05, "the comparison says something"
        assert (one.mean() - two.mean()).abs() < 4 * error, name


@pytest.mark.parametrize(("ours", "usual"), [(StickingTheLanding_ELBO(), Trace_ELBO()), (DReG_ELBO(4), None)])
def test_gradients_of_the_model_are_the_usual_ones_draw_by_draw(ours, usual):
    rows, drawn = Rows(50), []
    for loss in (ours, usual or ImportanceWeighted_ELBO(4)):
        drawn.append(gradients(at_seed(loss, rows.model, rows.guide, rows.x), rows.parameters))
    torch.testing.assert_close(drawn[0]["theta"], drawn[1]["theta"], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(drawn[0]["a"], drawn[1]["a"], atol=1e-3)


def exact_guides():
    """The exact posterior of a linear model with parameters for gradients: jointly, and as a chain of conditionals."""
    q = PPCA.posterior(X)
    loc, tril = q.mean.clone().requires_grad_(), q.scale_tril.clone().requires_grad_()

    def joint(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

    def auxiliary(x):
        with pyro.plate("data", len(x)):
            flat = pyro.sample("_z", dist.MultivariateNormal(loc, scale_tril=tril), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(flat, log_density=torch.zeros_like(flat[..., 0]), event_dim=1))

    return {"joint": joint, "auxiliary": auxiliary}, {"loc": loc, "tril": tril}


def scalar_chain():
    """z_1 ~ N(0, 1), z_2 | z_1 ~ N(z_1, 1), x | z_2 ~ N(z_2, 1): the posterior is z_1 | x, then z_2 | z_1, x."""
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    # x | z_1 ~ N(z_1, 2), so z_1 | x ~ N(x / 3, 2 / 3); z_2 | z_1, x ~ N((z_1 + x) / 2, 1 / 2)
    start = {"slope": 1 / 3, "scale": (2 / 3) ** 0.5, "link": 0.5, "weight": 0.5, "noise": 0.5**0.5}
    parameters = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in start.items()}

    def p(x):
        with pyro.plate("data", len(x)):
            z_1 = pyro.sample("z_1", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("z_2", dist.Normal(z_1, 1.0)), 1.0), obs=x)

    def q(x):
        with pyro.plate("data", len(x)):
            z_1 = pyro.sample("z_1", dist.Normal(parameters["slope"] * x, parameters["scale"]))
            loc = parameters["link"] * z_1 + parameters["weight"] * x
            pyro.sample("z_2", dist.Normal(loc, parameters["noise"]))

    return p, q, x, parameters


@pytest.mark.parametrize("loss", [StickingTheLanding_ELBO(), StickingTheLanding_ELBO(3), DReG_ELBO(1), DReG_ELBO(5)])
@pytest.mark.parametrize("kind", ["joint", "auxiliary", "chain"])
def test_no_noise_at_the_exact_posterior(loss, kind):
    """Every draw has gradient zero, where the usual estimators' gradients are of order one."""
    if kind == "chain":
        p, q, x, parameters = scalar_chain()
    else:
        guides, parameters = exact_guides()
        p, q, x = model, guides[kind], X
    for seed in range(5):
        pyro.set_rng_seed(seed)
        ours = gradients(loss.differentiable_loss(p, q, x), parameters)
        assert max(g.abs().max() for g in ours.values()) < 1e-10
        for usual in (Trace_ELBO(), ImportanceWeighted_ELBO(5)):
            noisy = gradients(usual.differentiable_loss(p, q, x), parameters)
            assert max(g.abs().max() for g in noisy.values()) > 0.1


def test_dreg_with_one_particle_sticks_the_landing():
    rows = Rows(50)
    one, two = (
        gradients(at_seed(loss, rows.model, rows.guide, rows.x), rows.parameters)
        for loss in (DReG_ELBO(1), StickingTheLanding_ELBO())
    )
    assert_same(one, two, atol=1e-12)


def test_signal_to_noise():
    """|mean| / deviation of a gradient, K = 4 to K = 64, 40,000 draws: in theory 4 times for DReG, 1/4 for IWAE.

    z ~ N(0, 1), x | z ~ N(z, 1), and q wider than the posterior, so that the weights have a variance. The signal is the
    difference from the optimal mean, 0.4; ratios of the noisiest of these four are known to 15 %.
    """
    rows = 20_000
    loc = torch.full((rows,), 0.9, dtype=torch.float64, requires_grad=True)

    def p(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0)), 1.0), obs=x)

    def q(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.9))

    def ratio(bound, particles):
        x, runs = torch.ones(rows, dtype=torch.float64), 2
        losses = [bound(particles).differentiable_loss(p, q, x) for _ in range(runs)]
        g = torch.cat([gradients(loss, {"loc": loc})["loc"] for loss in losses])
        return (g.mean() / g.std()).abs().item()

    doubly, usual = (ratio(b, 64) / ratio(b, 4) for b in (DReG_ELBO, ImportanceWeighted_ELBO))
    assert 2.5 < doubly < 6 and 0.12 < usual < 0.5, (doubly, usual)


@pytest.mark.parametrize("bound", [StickingTheLanding_ELBO, DReG_ELBO])
@pytest.mark.parametrize("own_rows", [False, True])
def test_subsampling_scales_the_gradients(bound, own_rows):
    """A mini-batch that stands for 400 data, or 10 rows that the programs draw themselves from 40."""
    tril = PPCA.posterior(X).scale_tril.clone().requires_grad_()
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def programs(**plate):
        def rows(x, index):
            return x[index] if own_rows else x

        def p(x):
            with pyro.plate("data", **plate) as index:
                z = pyro.sample("z", dist.Normal(torch.zeros(K, dtype=torch.float64), 1.0).to_event(1))
                loc = z @ PPCA.loadings.T + PPCA.mean
                pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=rows(x, index))

        def q(x):
            with pyro.plate("data", **plate) as index:
                loc = PPCA.posterior(rows(x, index)).mean + shift
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril[0]))

        return p, q

    parameters = {"tril": tril, "shift": shift}
    if own_rows:
        p, q = programs(size=40, subsample_size=10)
        drawn = [gradients(at_seed(bound(), p, q, X), parameters) for _ in range(2)]
        assert_same(*drawn)
        # a few draws of rows: the expectation is that of all rows
        means = torch.stack([bound().differentiable_loss(p, q, X).detach() for _ in range(200)])
        whole = torch.stack([bound().differentiable_loss(*programs(size=40), X[:40]).detach() for _ in range(20)])
        error = (means.var() / 200 + whole.var() / 20).sqrt()
        assert (means.mean() - whole.mean()).abs() < 4 * error
        return
    alone = gradients(at_seed(bound(), *programs(size=40), X), parameters)
    # a plate that is given its rows draws none from the generator, so both see the same noise
    given = programs(size=400, subsample=torch.arange(40))
    scaled = gradients(at_seed(bound(), *given, X), parameters)
    assert_same(scaled, {n: 10 * g for n, g in alone.items()})


def test_kl_weights():
    """Under a KL weight the score function is weighted as well, and still left out; DReG's weights are densities."""
    p, q, args, parameters = build("hierarchical_markovian_bottom_up", "own")
    with scale_latents({"z_1": 0.5, "z_2": 0.2, "z_3": 2.0}):
        usual = at_seed(Trace_ELBO(), p, q, *args)
        ours = at_seed(StickingTheLanding_ELBO(), p, q, *args)
        wanted = usual_without_score(q, args, usual, parameters)
        weighted = gradients(at_seed(DReG_ELBO(3), p, q, *args), parameters)
    torch.testing.assert_close(ours, usual)
    assert_same(gradients(ours, parameters), wanted)
    assert_same(weighted, gradients(at_seed(DReG_ELBO(3), p, q, *args), parameters))


def test_masked_rows_have_no_gradient():
    rows, seen = Rows(6), torch.tensor([True, False, True, True, False, False])
    for loss in (StickingTheLanding_ELBO(), DReG_ELBO(3)):
        with poutine.mask(mask=seen):
            found = gradients(loss.differentiable_loss(rows.model, rows.guide, rows.x), rows.parameters)
        for gradient in found.values():
            assert torch.equal(gradient != 0, seen)


@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_are_those_of_trace_elbo(vectorize):
    p, q, args, parameters = build("user_constrained", "multivariate_normal")
    ours = at_seed(StickingTheLanding_ELBO(4, vectorize_particles=vectorize), p, q, *args)
    usual = at_seed(Trace_ELBO(4, vectorize_particles=vectorize), p, q, *args)
    torch.testing.assert_close(ours, usual)
    assert any((g != 0).any() for g in gradients(ours, parameters).values())


def test_latents_outside_the_data_plate():
    """A global latent is no obstacle to the evidence lower bound, and one to importance weights per datum."""
    loc = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def p(x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def q(x):
        pyro.sample("mean", dist.Normal(loc, (1 + len(x)) ** -0.5))

    x = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    gradient = functools.partial(gradients, parameters={"loc": loc})
    wanted = (1 + len(x)) * loc.detach() - x.sum()  # the same for each draw: the posterior's shape is right already
    torch.testing.assert_close(gradient(StickingTheLanding_ELBO().differentiable_loss(p, q, x))["loc"], wanted)
    with pytest.raises(ValueError, match="outside the data plate"):
        DReG_ELBO().differentiable_loss(p, q, x)


def test_the_guide_runs_once():
    rows, calls = Rows(5), []

    def counted(x):
        calls.append(1)
        rows.guide(x)

    StickingTheLanding_ELBO().differentiable_loss(rows.model, counted, rows.x)
    assert len(calls) == 1
    bound = DReG_ELBO(2)
    for _ in range(3):
        bound.differentiable_loss(rows.model, counted, rows.x)
    looks = 1 + 5  # to find the plate, and to try several particles
    assert len(calls) == 1 + looks + 3


@pytest.mark.parametrize("bound", [StickingTheLanding_ELBO, DReG_ELBO])
def test_svi_and_refusals(bound):
    rows = Rows(5)
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        bound(0)

    def factored(x):
        with pyro.plate("data", len(x)):
            for name in ("z_1", "z_2", "rate"):
                pyro.sample(name, dist.LogNormal(rows.parameters["a"], 1.0))
            pyro.factor("more", rows.parameters["a"])

    def partly(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_1", dist.Normal(rows.parameters["a"], 1.0))

    def discrete(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_1", dist.Poisson(rows.parameters["b"].exp()))
            pyro.sample("z_2", dist.Normal(rows.parameters["a"], 1.0))
            pyro.sample("rate", dist.LogNormal(rows.parameters["a"], 1.0))

    for guide, message in ((factored, "'more' is not drawn"), (partly, "does not draw the model's latent sites")):
        with pytest.raises(ValueError, match=message):
            bound().differentiable_loss(rows.model, guide, rows.x)
    with pytest.raises(ValueError, match="'z_1' \\(Poisson\\) has none"), pyro.validation_enabled(False):
        bound().differentiable_loss(rows.model, discrete, rows.x)

    def p(x):
        w = pyro.param("w", torch.tensor(1.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w * pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0)), 1.0), obs=x)

    def q(x):
        a = pyro.param("a", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x, 1.0))

    svi = SVI(p, q, pyro.optim.Adam({"lr": 0.05}), bound())
    x = 3 * rows.x
    first = [svi.step(x) for _ in range(100)][:20]
    assert sum(svi.evaluate_loss(x) for _ in range(20)) < sum(first)
    assert pyro.param("a") > 0.1
