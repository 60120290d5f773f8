"""A stranger's extensions: a guide, a bound, a wrapping bound, a callback and a model.

Each is one file under ``tests/extensions`` and one row of the zoo here; nothing else of the
library or of the zoo knows it.
"""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_vaes.infer import (
    AggregatePosterior_ELBO,
    ImportanceWeighted_ELBO,
    KLWarmup,
    RecursiveMixture_ELBO,
    facts_of,
    fit,
)
from pyro_vaes.infer.bounds.facts import layers
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead
from pyro_vaes.theory import ProbabilisticPCA
from tests import zoo
from tests.extensions.planar_guide import AmortizedPlanar
from tests.extensions.renyi_bound import RenyiAlpha_ELBO
from tests.extensions.svi_callback import FitAnother
from tests.extensions.vamp_prior import VampVAE
from tests.extensions.wrapping_bound import Counting_ELBO
from tests.test_zoo import (
    test_loss_and_gradients_are_finite_and_fit_and_svi_train as zoo_test,
)


def vamp_vae():
    encoder = Chain(MLP(zoo.D, [8], 8), NormalHead(8, 3))
    vae = VampVAE(encoder, MLP(3, [8], zoo.D), GaussianLikelihood(), zoo.D, num_pseudo=4)
    x = torch.randn(zoo.B, zoo.D)
    return zoo.Built(vae.model, (x,), vae.guide, lambda: MLP(zoo.D, [8], 8), 3, vae)


def planar(built):
    encoder = zoo.headed(built, NormalHead)
    return AmortizedPlanar(built.model, encoder, built.latent_numel)


MODELS = {"vamp": zoo.Model(vamp_vae, normal_priors=False, prior_gradients=False)}
GUIDES = {"planar": zoo.Guide(planar, zoo.Draws(joint=True, normal=False))}
BOUNDS = {
    "renyi": zoo.Bound(lambda: RenyiAlpha_ELBO(0.5, 3), reparameterised=True),
    "counting": zoo.Bound(lambda: Counting_ELBO(Trace_ELBO())),
}
check_composition = zoo_test
del zoo_test  # not to be collected here
OLD = (dict(zoo.MODELS), dict(zoo.GUIDES), dict(zoo.BOUNDS))


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """The zoo with the rows of this file."""
    for name, new in (("MODELS", MODELS), ("GUIDES", GUIDES), ("BOUNDS", BOUNDS)):
        for key, row in new.items():
            monkeypatch.setitem(getattr(zoo, name), key, row)


# a flow without an inverse knows the density of its own draws alone
NEEDS_OTHER_DENSITIES = {
    "mutual_posterior",
    "aggregate_posterior",
    "trace_vectorized",
    "sticking_the_landing",
    "dreg",
}
CASES = [
    *(("vamp", "own", bound) for bound in OLD[2]),
    *(("vamp", guide, "trace") for guide in ("normal", "householder", "iaf")),
    *(("mlp_vae", "planar", b) for b in OLD[2] if b not in NEEDS_OTHER_DENSITIES),
    *((model, "planar", "trace") for model in ("user_constrained", "conv_vae")),
    *(("mlp_vae", guide, bound) for bound in BOUNDS for guide in OLD[1]),
    *((model, "own", "renyi") for model in ("conditional_vae", "ladder_mlp")),
    ("vamp", "planar", "renyi"),
]


@pytest.mark.parametrize(("model", "guide", "bound"), CASES)
def test_extensions_compose(model, guide, bound):
    check_composition(model, guide, bound)


def test_the_renyi_bound_tends_to_the_evidence_and_the_importance_weighted_bound():
    """alpha = 0 is the importance-weighted bound; the exact posterior gives log p(x) for every alpha."""
    torch.set_default_dtype(torch.float64)
    built = zoo.MODELS["linear_vae"]()
    x = built.args[0]

    values = []
    for bound in (RenyiAlpha_ELBO(0.0, 5), ImportanceWeighted_ELBO(5)):
        pyro.set_rng_seed(1)
        values.append(bound.loss(built.model, built.guide, x))
    assert values[0] == pytest.approx(values[1], rel=1e-12)

    pca = ProbabilisticPCA(torch.randn(zoo.D), torch.randn(zoo.D, 3), 0.25)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            mean = pca.mean + z @ pca.loadings.T
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def exact_posterior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pca.posterior(x))

    for alpha in (0.0, 0.5, 2.0):
        loss = RenyiAlpha_ELBO(alpha, 4).loss(model, exact_posterior, x)
        assert loss == pytest.approx(-pca.log_prob(x).sum().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("inner", "fact", "wanted"),
    [
        (ImportanceWeighted_ELBO(2), "has_kl", False),
        (AggregatePosterior_ELBO(), "min_rows", 2),
        (RecursiveMixture_ELBO(schedule="sequential"), "one_loss", False),
        (RecursiveMixture_ELBO(), "one_loss", True),
        (RecursiveMixture_ELBO(), "plain_draws", False),
        (TraceEnum_ELBO(), "enumerates", True),
        (TraceMeanField_ELBO(), "analytic_kl", True),
        (Trace_ELBO(), "has_kl", True),
    ],
)
def test_a_wrapping_bound_that_states_nothing_has_the_facts_of_the_bound_inside(inner: ELBO, fact, wanted):
    assert getattr(facts_of(inner), fact) is wanted or getattr(facts_of(inner), fact) == wanted
    assert getattr(facts_of(Counting_ELBO(inner)), fact) == wanted
    assert getattr(facts_of(Counting_ELBO(Counting_ELBO(inner))), fact) == wanted


def test_what_a_wrapping_bound_states_itself_comes_first():
    class WithKL(Counting_ELBO):
        has_kl = True

    assert facts_of(WithKL(ImportanceWeighted_ELBO(2))).has_kl


def test_bounds_held_in_a_sequence_are_found_and_named():
    class Sum_ELBO(Trace_ELBO):
        def __init__(self, *terms: ELBO) -> None:
            super().__init__()
            self.terms = terms

    terms = (Counting_ELBO(Trace_ELBO()), AggregatePosterior_ELBO())
    facts = facts_of(Sum_ELBO(*terms))

    assert facts.inner == terms
    assert facts.min_rows == facts_of(terms[1]).min_rows > 1
    assert [type(bound).__name__ for bound in layers(Sum_ELBO(*terms))] == [
        "Sum_ELBO",
        "Counting_ELBO",
        "Trace_ELBO",
        "AggregatePosterior_ELBO",
    ]


def test_fit_reads_the_facts_of_a_wrapped_bound():
    built = zoo.MODELS["mlp_vae"]()
    x, options = built.args[0], {"epochs": 1, "progress": False}

    bound = Counting_ELBO(ImportanceWeighted_ELBO(2))
    with pytest.raises(ValueError, match="KLWarmup weighs the KL term"):
        fit(built.model, built.guide, x, loss=bound, callbacks=[KLWarmup(3)], **options)

    linear = zoo.MODELS["linear_vae"]()
    bound = Counting_ELBO(AggregatePosterior_ELBO())
    with pytest.raises(ValueError, match="needs at least 2"):
        fit(
            linear.model,
            linear.guide,
            linear.args[0],
            loss=bound,
            batch_size=5,
            drop_last=False,
            **options,
        )


def test_a_callback_that_runs_its_own_svi_gets_what_it_gets_outside():
    """Its pair trains, its losses are numbers, and the run around it is not disturbed."""
    torch.manual_seed(0)
    x = torch.randn(40, 3)

    def pair():
        return VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), 2)

    main, other = pair(), pair()
    alone, untouched, inside = (copy.deepcopy(v) for v in (other, main, other))

    with_svi = FitAnother(inside.model, inside.guide, x, steps=5)
    fit(main.model, main.guide, x, epochs=2, seed=0, callbacks=[with_svi], progress=False)
    fit(untouched.model, untouched.guide, x, epochs=2, seed=0, progress=False)

    outside = FitAnother(alone.model, alone.guide, x, steps=5)
    for _ in range(2):
        outside.epoch(None)

    assert all(isinstance(loss, float) for loss in with_svi.losses)
    assert with_svi.losses == outside.losses
    for trained, wanted in ((inside, alone), (main, untouched)):
        for p, q in zip(trained.parameters(), wanted.parameters(), strict=True):
            assert torch.equal(p, q)
    start = zip(inside.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in start)


def test_validation_is_as_outside_while_callbacks_run():
    """A value outside its support is refused inside a callback as it is outside."""
    built = zoo.MODELS["mlp_vae"]()
    seen = []

    class LookAtPyro(FitAnother):
        def __init__(self):
            pass

        def stepped(self, run):
            seen.append(dist.is_validation_enabled())
            item = pyro.infer.trace_elbo.torch_item
            seen.append(isinstance(item(torch.ones(())), float))

        def epoch(self, run):
            self.stepped(run)

    fit(
        built.model,
        built.guide,
        built.args[0],
        epochs=1,
        callbacks=[LookAtPyro()],
        progress=False,
    )
    assert seen and all(seen)


def test_svi_sees_the_extensions_like_any_bound():
    built = zoo.MODELS["mlp_vae"]()
    for bound in (RenyiAlpha_ELBO(0.5, 3), Counting_ELBO(Trace_ELBO())):
        optim = pyro.optim.Adam({"lr": 1e-2})
        assert isinstance(SVI(built.model, built.guide, optim, bound).step(*built.args), float)
