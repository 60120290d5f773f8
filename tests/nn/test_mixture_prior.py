"""Mixtures of normals as priors: where they start, and the expectation that form B of a clustering ladder needs."""

import pytest
import torch
from pyro.distributions import Normal

from pyro_vaes.nn import MixturePrior, MultivariateNormalHead


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def blobs(per=300):
    """Four blobs with standard deviation 0.2 at the corners of a square, the first with half of the points."""
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    counts = torch.tensor([3 * per, per, per, per])
    return centres.repeat_interleave(counts, 0) + 0.2 * torch.randn(6 * per, 2), centres


@pytest.mark.parametrize("method", ["gmm", "kmeans"])
@pytest.mark.parametrize("full", [False, True])
def test_components_start_on_the_codes(method, full):
    """Means within 5 standard errors (0.2 / sqrt(300)), spreads within 5 of theirs (0.2 / sqrt(600))."""
    codes, centres = blobs()
    prior = MixturePrior(2, 4, full_covariance=full)
    prior.start_from(codes, scale=None, method=method)
    order = torch.cdist(centres, prior.loc).argmin(-1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert (prior.loc[order] - centres).abs().max() < 5 * 0.2 / 300**0.5
    assert (prior.components.stddev - 0.2).abs().max() < 5 * 0.2 / 600**0.5
    torch.testing.assert_close(prior.weights.probs[order], torch.tensor([3.0, 1, 1, 1]) / 6, rtol=0, atol=1e-6)
    prior.start_from(codes, method=method)
    torch.testing.assert_close(prior.components.stddev, torch.full((4, 2), 0.1))


def test_fixed_weights_are_uniform_and_stay():
    prior = MixturePrior(2, 4, learn_weights=False)
    prior.start_from(blobs()[0])
    assert torch.equal(prior.weights.probs, torch.full((4,), 0.25))
    assert "logits" not in dict(prior.named_parameters()) and "logits" in prior.state_dict()


def test_an_empty_component_keeps_a_little_weight():
    prior = MixturePrior(1, 3)
    prior.place(torch.zeros(3, 1), 1.0, probs=torch.tensor([1.0, 1.0, 0.0]))
    assert 1e-4 < prior.weights.probs[2] < 1e-3


def test_scales_start_where_they_are_put_and_have_a_floor():
    prior = MixturePrior(3, 2, min_scale=0.01)
    prior.place(torch.randn(2, 3), torch.tensor([0.5, 7.0, 0.02]))
    torch.testing.assert_close(prior.components.stddev, torch.tensor([0.5, 7.0, 0.02]).expand(2, 3))
    prior.place(torch.randn(2, 3), 1e-9)
    assert ((prior.components.stddev > 0.01) & (prior.components.stddev < 0.012)).all()


@pytest.mark.parametrize("full", [False, True])
def test_the_expected_joint_density(full):
    """Against n = 20,000 draws, within 5 standard errors."""
    prior = MixturePrior(2, 3, full_covariance=full)
    with torch.no_grad():
        prior.raw_scale.normal_()
        if full:
            prior.lower.normal_()
    q = Normal(torch.randn(4, 2), 0.3 + torch.rand(4, 2)).to_event(1)
    with torch.no_grad():
        draws = prior().log_joint(q.sample((20_000,)))
        error = (draws.mean(0) - prior.expected_log_joint(q)).abs()
    assert (error < 5 * draws.std(0) / 20_000**0.5).all()


def test_a_covariance_is_full_where_it_is_asked_for():
    prior = MixturePrior(3, 2, full_covariance=True)
    with torch.no_grad():
        prior.lower.fill_(0.5)
    tril = prior.components.scale_tril
    assert torch.equal(tril, tril.tril()) and (tril.tril(-1).sum((-1, -2)) == 1.5).all()
    assert MixturePrior(1, 2, full_covariance=True).lower is None, "one dimension has no off-diagonal"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixturePrior(2, 0), "num_components >= 1"),
        (lambda: MixturePrior(2, 2, scale=1e-4), "scale > min_scale > 0"),
        (lambda: MixturePrior(2, 2).place(torch.zeros(3, 2), 1.0), r"shape \(2, 2\), but got \(3, 2\)"),
        (lambda: MixturePrior(2, 2, learn_weights=False).place(torch.zeros(2, 2), 1.0, probs=torch.ones(2)), "fixed"),
        (lambda: MixturePrior(2, 9).start_from(torch.zeros(8, 2)), r"as many codes .* got \(8, 2\)"),
        (
            lambda: MixturePrior(2, 2).start_from(torch.randn(8, 2), method="em"),
            "'kmeans'., but got 'em'",
        ),
        (
            lambda: MixturePrior(3, 2).expected_log_joint(MultivariateNormalHead(4, 3)(torch.zeros(5, 4))),
            "diagonal normals, but got MultivariateNormal. Give classifiers",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
