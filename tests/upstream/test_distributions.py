"""Facts about Pyro's distributions. Each test says who relies on its fact."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

MASK = torch.tensor([True, False, True])


def masked():
    return dist.Normal(torch.zeros(3), torch.ones(3)).mask(MASK)


def test_masked_density_is_zero_where_the_mask_is_false():
    """programs, diagnostics: a masked datum does not count."""
    log_prob = masked().log_prob(torch.ones(3))
    assert log_prob[1] == 0 and (log_prob[[0, 2]] < 0).all()


def test_masked_density_hides_nan_but_validation_does_not_look_at_the_mask():
    """programs: masked entries of the data may be NaN in training alone, unvalidated."""
    value = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(ValueError, match="support"):
        masked().log_prob(value)
    with pyro.validation_enabled(False):
        assert masked().log_prob(value)[1] == 0


def test_masked_distribution_keeps_its_mask_and_its_base():
    """guides, diagnostics: masks and base distributions are read off."""
    fn = masked()
    assert isinstance(fn, dist.MaskedDistribution)
    assert fn._mask is MASK and type(fn.base_dist) is dist.Normal


def test_masked_distribution_draws_everywhere():
    """guides: the value of a masked latent is a draw like any other."""
    assert masked().has_rsample and masked().rsample().shape == (3,)


def test_masked_kl_is_registered_and_zero_where_a_mask_is_false():
    """infer: analytic KLs of masked sites."""
    prior = dist.Normal(torch.ones(3), 1.0).mask(torch.tensor([True, True, False]))
    assert kl_divergence(masked(), prior).tolist() == [0.5, 0.0, 0.0]


def test_mask_of_true_is_the_distribution_unmasked_and_of_false_a_density_of_zero():
    """programs: masks may be Python booleans."""
    fn = dist.Normal(torch.zeros(3), 1.0)
    value = torch.ones(3)
    assert torch.equal(fn.mask(True).log_prob(value), fn.log_prob(value))
    assert (fn.mask(False).log_prob(value) == 0).all()


def test_masked_mixture_picks_the_component_by_the_mask():
    """guides: a latent follows its prior where it is masked."""
    components = dist.Normal(torch.zeros(3), 1e-6), dist.Normal(torch.full((3,), 9.0), 1e-6)
    draw = dist.MaskedMixture(MASK, *components).rsample()
    assert draw.round().tolist() == [9.0, 0.0, 9.0]


def test_delta_has_its_log_density_at_its_value_alone():
    """guides: the Jacobian of a map onto a support is the log_density of a Delta."""
    fn = dist.Delta(torch.ones(2), log_density=torch.tensor(-3.0), event_dim=1)
    assert fn.log_prob(torch.ones(2)) == -3.0
    assert fn.log_prob(torch.zeros(2)) == -float("inf")
    assert fn.event_shape == (2,) and fn.has_rsample


def test_gradients_pass_through_the_value_of_a_delta():
    """guides: parts of a joint draw keep its gradient."""
    value = torch.ones(2, requires_grad=True)
    dist.Delta(value, event_dim=1).rsample().sum().backward()
    assert value.grad.tolist() == [1.0, 1.0]


def test_to_event_makes_an_independent_of_pyros_own_class():
    """nn, guides: posteriors are taken apart and put together again."""
    fn = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    assert isinstance(fn, dist.Independent) and fn.reinterpreted_batch_ndims == 1
    assert isinstance(fn, torch.distributions.Independent)


@pytest.mark.parametrize("of", [dist, torch.distributions])
def test_mixtures_of_one_family_are_not_reparameterised(of):
    """distributions: the reason for a mixture of our own."""
    weights = of.Categorical(logits=torch.zeros(2))
    assert not of.MixtureSameFamily(weights, of.Normal(torch.zeros(2), 1.0)).has_rsample


def test_mixture_of_diagonal_normals_draws_from_the_wrong_batch_element():
    """distributions: the other reason for it."""
    pyro.set_rng_seed(0)
    locs = torch.tensor([0.0, 100.0]).reshape(2, 1, 1).expand(2, 2, 1)  # one of each datum
    fn = dist.MixtureOfDiagNormals(locs, torch.ones(2, 2, 1), torch.zeros(2, 2))
    assert fn.rsample().round(decimals=-2).squeeze(-1).tolist() == [0.0, 100.0]
    draws = fn.rsample((2,)).round(decimals=-2).squeeze(-1)
    assert draws.tolist() == [[0.0, 0.0], [100.0, 100.0]], "each row should be 0, 100"


def test_expand_by_keeps_reparameterisation_and_plates_expand_sites():
    """programs: a site inside a plate is expanded to the plate's size."""

    def program():
        with pyro.plate("data", 5):
            return pyro.sample("z", dist.Normal(0.0, 1.0))

    site = pyro.poutine.trace(program).get_trace().nodes["z"]
    assert site["fn"].batch_shape == (5,) and site["value"].shape == (5,)
