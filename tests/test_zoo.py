"""The claim that p, q and the bound compose, as a test: every model × guide × bound."""

import copy
import re

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_vaes.diagnostics import log_likelihood, posterior_predictive
from pyro_vaes.infer import check, fit, load_weights, save_weights
from pyro_vaes.programs.pair import Pair
from tests.zoo import (
    ALL_CASES,
    BOUNDS,
    CASES,
    FULL,
    GUIDES,
    MODELS,
    PAIRS,
    B,
    aims,
    covering,
    draws_of,
    undefined,
)

# Thousands of combinations of what each room's own tests cover line by line; the tracer would take half of their time.
pytestmark = pytest.mark.no_cover


def build(model, guide, dtype=torch.float32):
    torch.set_default_dtype(dtype)
    built = MODELS[model]()
    return built, GUIDES[guide](built)


@pytest.mark.parametrize(("model", "guide", "bound"), CASES)
def test_loss_and_gradients_are_finite_and_fit_and_svi_train(model, guide, bound):
    built, q = build(model, guide)
    loss = BOUNDS[bound]()
    report = check(built.model, q, built.args, loss=loss)
    if undefined(model, guide, bound):
        cure = r"Use Trace(Enum)?_ELBO|other sites for TraceEnum_ELBO"
        assert not report.ok and re.search(cure, str(report))
        with pytest.raises(ValueError, match=cure):
            fit(built.model, q, built.args, loss=loss, epochs=1, progress=False)
        return
    assert report.problems == ()
    pair = Pair(built.model, q)
    pair.discover(loss, built.args)
    assert pair.parameters and pair.unreached == []
    value = loss.differentiable_loss(built.model, q, *built.args)
    gradients = torch.autograd.grad(value, list(pair.parameters.values()))
    assert value.isfinite() and all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)

    history = fit(built.model, q, built.args, loss=BOUNDS[bound](), epochs=1, batch_size=4, seed=0, progress=False)
    assert len(history.train) == 1 and history.skipped == 0
    before = [p.clone() for p in pair.state().values()]
    svi = SVI(built.model, q, pyro.optim.Adam({"lr": 1e-2}), BOUNDS[bound]())
    assert torch.isfinite(torch.tensor(svi.step(*built.args)))
    assert any(not torch.equal(a, b) for a, b in zip(pair.state().values(), before, strict=True))


def trained(model, guide):
    """All tensors of a pair as built, after ``fit``, and after a step by hand."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    built, q = build(model, guide)
    bound = BOUNDS["enum" if MODELS[model].clusters else "trace"]
    pair = Pair(built.model, q)
    pair.discover(bound(), built.args)
    states = [[p.clone() for p in pair.state().values()]]

    options = {"loss": bound(), "epochs": 1, "batch_size": 4, "seed": 0}
    fit(built.model, q, built.args, progress=False, **options)
    states.append([p.clone() for p in pair.state().values()])

    # By hand: under the setting, Pyro's SVI fails at a plain parameter (tests/upstream).
    optimizer = torch.optim.Adam(pair.parameters.values(), lr=1e-2)
    optimizer.zero_grad()
    bound().loss_and_grads(built.model, q, *built.args)
    optimizer.step()
    states.append([p.clone() for p in pair.state().values()])
    return states


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# The models without a guide write to the global store. Under the setting, Pyro refuses
# that in a guide that is a PyroModule.
LOCAL = [
    (model, guide)
    for model in MODELS
    for guide in ("own", "normal")
    if draws_of(model, "own") and not undefined(model, guide, "enum")
]


@pytest.mark.parametrize(("model", "guide"), LOCAL)
def test_parameters_local_to_modules_train_alike(model, guide):
    """Pyro's other way to keep parameters, without the global store, changes nothing."""
    start, fitted, stepped = trained(model, guide)
    assert not same(start, fitted) and not same(fitted, stepped)

    with pyro.settings.context(module_local_params=True):
        local = trained(model, guide)
    assert same(local[0], start) and same(local[1], fitted) and same(local[2], stepped)


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_importance_weighting_tightens_the_bound(model, guide):
    built, q = build(model, guide, torch.float64)
    result = log_likelihood(built.model, q, built.args, 200)
    gap = result.log_likelihood - result.elbo
    assert (gap >= 0).all(), "the logarithm of the mean weight is at least the mean logarithm"
    with torch.no_grad():
        elbo = -torch.stack([torch.tensor(Trace_ELBO().loss(built.model, q, *built.args)) for _ in range(200)]) / B
    # the mean log weight is the ELBO of Pyro's own estimator, both from 200 draws: 5 standard errors of the difference
    error = (2 / 200) ** 0.5 * elbo.std() + 1e-9
    assert (result.elbo.mean() - elbo.mean()).abs() < 5 * error


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_predictive_draws_replicates(model, guide):
    built, q = build(model, guide)
    replicates = posterior_predictive(built.model, q, built.args, 3)
    for value in replicates.values():
        assert value.shape[:2] == (3, B) and value.isfinite().all()
    draws = Predictive(built.model, guide=q, num_samples=2)(*built.args)
    assert all(v.shape[0] == 2 for v in draws.values())


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_state_round_trip(model, guide, tmp_path):
    built, q = build(model, guide)
    q(*built.args)

    def loss():
        return torch.tensor(Trace_ELBO().loss(built.model, q, *built.args))

    pyro.set_rng_seed(1)
    wanted = loss()
    save_weights(tmp_path / "pair", built.model, q)
    with torch.no_grad():
        for tensor in Pair(built.model, q).state().values():
            tensor.add_(0.3)
    pyro.set_rng_seed(1)
    assert not torch.equal(loss(), wanted)
    load_weights(tmp_path / "pair", built.model, q)
    pyro.set_rng_seed(1)
    assert torch.equal(loss(), wanted)


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_dtype_is_kept(model, guide):
    built, q = build(model, guide, torch.float64)
    trace = pyro.poutine.trace(q).get_trace(*built.args)
    values = [s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n in ("z", "z_1", "rate", "size")]
    assert values and all(v.dtype == torch.float64 for v in values)


@pytest.mark.parametrize("model", [m for m, g in PAIRS if g == "own"])
def test_copies_train_apart_under_svi(model):
    """Training a copy by SVI leaves the original alone, and ends where training the original alone ends."""
    built, _ = build(model, "own")
    twin = copy.deepcopy(built.owner)

    def train(owner):
        pyro.set_rng_seed(3)
        svi = SVI(owner.model, owner.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        return [svi.step(*built.args) for _ in range(3)]

    first = train(built.owner)
    frozen = [p.clone() for p in built.owner.parameters()]
    assert train(twin) == first
    assert all(torch.equal(a, b) for a, b in zip(built.owner.parameters(), frozen, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), frozen, strict=True))


def said(case):
    """What a refused case is told, but for the names of sites and distributions."""
    pyro.clear_param_store()
    built, q = build(*case[:2])
    report = check(built.model, q, built.args, loss=BOUNDS[case[2]]())
    names = r"'[^']*'|\{.*?\}|\[.*?\]|\([^)]*\)|\d+|(?<=is )[A-Z]\w+"
    texts = [p.text.replace("'s ", " ") for p in report.problems if p.fatal]
    return frozenset(re.sub(names, "_", text) for text in texts)


@pytest.mark.skipif(not FULL, reason="make test-full checks every refusal")
def test_covering_set_has_every_distinct_refusal():
    chosen = {c for c in covering(ALL_CASES, aims) if undefined(*c)}
    told = {c: said(c) for c in ALL_CASES if undefined(*c)}
    left_out = {text: case for case, text in told.items()}
    for case in chosen:
        left_out.pop(told[case], None)
    assert not left_out


def test_covering_set_shows_all_that_the_whole_zoo_shows():
    chosen = covering(ALL_CASES, aims)
    assert set().union(*map(aims, chosen)) == set().union(*map(aims, ALL_CASES))
    assert len(chosen) < len(ALL_CASES) / 6
    assert chosen == covering(ALL_CASES, aims), "pytest-xdist needs one set everywhere"
