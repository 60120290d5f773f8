"""Facts about Pyro's bounds and Predictive. Each test says who relies on its fact."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import trace_elbo, trace_mean_field_elbo, traceenum_elbo

X = torch.tensor([1.0, -0.5, 2.0, 0.3])


def model(x, full_size=None):
    full_size = len(x) if full_size is None else full_size
    with pyro.plate("data", full_size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, full_size=None):
    full_size = len(x) if full_size is None else full_size
    with pyro.plate("data", full_size, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior


def evidence(x):
    return dist.Normal(0.0, 2**0.5).log_prob(x).sum()


@pytest.mark.parametrize("module", [trace_elbo, trace_mean_field_elbo, traceenum_elbo])
def test_bounds_look_up_warn_if_nan_in_their_modules(module):
    """infer: replaced around a loss, so that no step waits for the device."""
    assert module.warn_if_nan is pyro.util.warn_if_nan


@pytest.mark.parametrize("module", [trace_elbo, trace_mean_field_elbo])
def test_bounds_look_up_torch_item_in_their_modules(module):
    """infer: replaced around a loss, so that it stays on the device."""
    assert module.torch_item is infer.util.torch_item


def test_replacing_torch_item_keeps_the_loss_a_tensor(monkeypatch):
    """infer: no host synchronisation in a step."""
    monkeypatch.setattr(trace_elbo, "torch_item", lambda value: value)
    assert isinstance(infer.Trace_ELBO().loss(model, guide, X), torch.Tensor)


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO"])
def test_bounds_have_a_differentiable_loss(name):
    """infer: what fit differentiates."""
    loc = torch.zeros((), requires_grad=True)

    def learning(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + loc, 1.0))

    silent = {"strict_enumeration_warning": False} if name == "TraceEnum_ELBO" else {}
    bound = getattr(infer, name)(**silent)
    assert bound.differentiable_loss(model, learning, X).requires_grad


@pytest.mark.parametrize("name", ["RenyiELBO", "ReweightedWakeSleep", "TraceGraph_ELBO"])
def test_bounds_without_a_differentiable_loss(name):
    """infer: fit falls back to loss_and_grads for these."""
    assert not hasattr(getattr(infer, name), "differentiable_loss")


def test_exact_posterior_gives_the_evidence():
    """this file: what the other bounds are held to."""
    assert infer.Trace_ELBO().loss(model, guide, X) == pytest.approx(-evidence(X).item(), rel=1e-5)


def test_renyi_elbo_of_a_subsampled_plate_is_no_bound():
    """infer: the reason for importance weights of our own, unscaled and per datum."""

    def prior(x, full_size=None):
        with pyro.plate("data", full_size or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    pyro.set_rng_seed(0)
    bound = infer.RenyiELBO(alpha=0.0, num_particles=2000, vectorize_particles=True)
    truth = 100 * evidence(X)  # of 400 data, each of the four a hundred times
    assert -bound.loss(model, prior, X, 400) > truth + 10
    assert -bound.loss(model, prior, X) == pytest.approx(evidence(X).item(), abs=0.3)


def test_mean_field_elbo_ignores_a_scale_on_the_models_latent_alone():
    """infer.scale_latents: KL weights go on both programs."""

    def weighted(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.01):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    bound = infer.TraceMeanField_ELBO()
    losses = []
    for program in (model, weighted):
        pyro.set_rng_seed(0)
        losses.append(bound.loss(program, guide, X))
    assert losses[0] == losses[1]


def chain(x):
    with pyro.plate("data", len(x)):
        z_2 = pyro.sample("z_2", dist.Normal(torch.zeros(len(x)), 1.0))
        z_1 = pyro.sample("z_1", dist.Normal(z_2, 1.0))
        pyro.sample("x", dist.Normal(z_1, 1.0), obs=x)


def bottom_up(x):
    """The exact posterior, z_1 before z_2."""
    with pyro.plate("data", len(x)):
        z_1 = pyro.sample("z_1", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
        pyro.sample("z_2", dist.Normal(z_1 / 2, 0.5**0.5))


def test_mean_field_elbo_is_biased_for_a_guide_against_the_models_order():
    """infer.check: such a pair is refused."""
    exact = -dist.Normal(0.0, 3**0.5).log_prob(X).sum().item()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(False):
        mean_field = infer.TraceMeanField_ELBO(num_particles=2000, vectorize_particles=True)
        assert mean_field.loss(chain, bottom_up, X) > exact + 0.5
        trace = infer.Trace_ELBO(num_particles=10, vectorize_particles=True)
        assert trace.loss(chain, bottom_up, X) == pytest.approx(exact, rel=1e-4)


def test_predictive_returns_the_data_for_an_observed_site():
    """diagnostics: replicates come from the model without its data."""
    draws = infer.Predictive(model, guide=guide, num_samples=3)(X)
    assert torch.equal(draws["x"], X.expand(3, 4))


def test_vectorized_particles_are_a_plate_left_of_all_others():
    """infer: programs broadcast over particles."""
    shapes = []

    def shaped(x):
        with pyro.plate("data", len(x)):
            shapes.append(pyro.sample("z", dist.Normal(x / 2, 1.0)).shape)

    bound = infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    bound.loss(model, shaped, X)
    assert shapes == [(3, 4)]


def test_scale_and_mask_multiplies_and_zeroes():
    """infer: densities of sites are weighed by this function of Pyro's."""
    value = dist.util.scale_and_mask(torch.ones(2), 3.0, torch.tensor([True, False]))
    assert value.tolist() == [3.0, 0.0]
