"""Posterior means of any pair, and what they know about labels."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pyro_vaes.diagnostics import posterior_means, representation_report
from pyro_vaes.diagnostics.representation.representation import (
    kmeans_scores,
    knn_accuracy,
    labelled_subset,
    linear_accuracy,
)
from pyro_vaes.guides import AmortizedMultivariateNormal
from pyro_vaes.nn import MultivariateNormalHead
from tests.diagnostics.linear import PPCA, K, X, exact, model
from tests.infer.pairs import binary, binary_vae, hierarchical_vae, same, weights


def test_means_are_the_posteriors():
    means = posterior_means(model, exact, X, batch_size=7)
    torch.testing.assert_close(means, PPCA.posterior(X).mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(posterior_means(model, exact, X, batch_size=7, num_particles=3), means)


def test_the_pair_is_left_alone_and_evaluated():
    vae, x = binary_vae(middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))), binary(20)
    before, state = weights(vae), torch.get_rng_state()
    one, other = (posterior_means(vae.model, vae.guide, x) for _ in range(2))
    assert torch.equal(one, other) and vae.training
    assert same(before, weights(vae)) and torch.equal(state, torch.get_rng_state())
    labels = torch.zeros(20)
    assert torch.equal(posterior_means(vae.model, vae.guide, (x, labels)), one)  # cut to what the model takes


def test_sites_drawn_given_others_are_averaged():
    """E[z_2 | x] over draws of z_1 in a linear chain: 1,000 draws, 5 standard errors."""

    def chain(x):
        with pyro.plate("data", len(x)):
            z_1 = pyro.sample("z_1", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("z_2", dist.Normal(2 * z_1[..., :1] + 1, 0.1).to_event(1))

    x = torch.randn(5, 2)
    first = posterior_means(chain, chain, x, sites=["z_1"])
    assert torch.equal(first, x)
    means = posterior_means(chain, chain, x, num_particles=1000)
    assert means.shape == (5, 3)
    assert ((means[:, 2:] - 2 * x[:, :1] - 1).abs() < 5 * 2 / 1000**0.5).all()
    vae = hierarchical_vae(top_down=True)
    assert posterior_means(vae.model, vae.guide, binary(6), sites=["z_2", "z_1"]).shape == (6, 5)


def test_joint_draws_inner_plates_and_enumerated_models():
    def two(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x[:, 0])

    guide, x = AmortizedMultivariateNormal(two, MultivariateNormalHead(3, 2)), torch.randn(6, 3)
    q = guide.posterior(x)
    means = posterior_means(two, guide, x, num_particles=1000)
    assert ((means - q.mean).abs() < 5 * q.variance.sqrt() / 1000**0.5).all()

    def nested(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", 3, dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    assert torch.equal(posterior_means(nested, nested, x), x)

    def summed_out(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(y.float(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    assert torch.equal(posterior_means(summed_out, its_guide, x), x[:, :1])


def test_rows_that_the_program_draws_itself():
    def program(x):
        with pyro.plate("data", 10, subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows], 1.0))

    x = torch.randn(10)
    assert torch.equal(posterior_means(program, program, x, batch_size=10), x.unsqueeze(-1))


def test_labelled_subset():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3)
    rows = labelled_subset(labels, 20, seed=1)
    assert len(set(rows.tolist())) == 20
    counts = labels[rows].bincount()
    assert counts[2] == 3 and {int(counts[0]), int(counts[1])} <= {8, 9}
    assert not torch.equal(rows, labelled_subset(labels, 20, seed=2))
    assert torch.equal(rows, labelled_subset(labels, 20, seed=1))
    assert torch.equal(labelled_subset(labels, 83), torch.arange(83))
    with pytest.raises(ValueError, match="cannot be chosen from 83"):
        labelled_subset(labels, 84)


def test_knn_by_hand():
    train, labels = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([0, 0, 1, 1])
    test, truth = torch.tensor([[0.4], [9.0], [1.8]]), torch.tensor([0, 1, 1])
    assert knn_accuracy(train, labels, test, truth, neighbors=1) == 1.0
    assert knn_accuracy(train, labels, test, truth, neighbors=3) == pytest.approx(2 / 3)  # 1.8 is outvoted
    assert knn_accuracy(train[:1], labels[:1], test, truth) == pytest.approx(1 / 3)  # fewer rows than neighbours


def test_linear_probe_is_linear_and_blind_to_scale():
    x = torch.randn(400, 2)
    side, ring = (x @ torch.tensor([1.0, -2.0]) > 0).long(), (x.norm(dim=1) > 1.2).long()
    assert linear_accuracy(x[:300], side[:300], x[300:], side[300:]) > 0.95
    assert linear_accuracy(x[:300], ring[:300], x[300:], ring[300:]) < 0.65
    scaled = x * torch.tensor([1e4, 1e-4]) + 7
    assert linear_accuracy(scaled[:300], side[:300], scaled[300:], side[300:]) > 0.95


def test_kmeans_by_hand():
    x = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    accuracy, f1 = kmeans_scores(x, torch.tensor([1, 1, 0, 0, 0, 0]))
    assert accuracy == pytest.approx(5 / 6)
    assert f1 == pytest.approx((2 * 2 / 5 + 2 * 3 / 7) / 2)  # of label 1: 2 of 3 right; of label 0: all of 3, 4 there
    accuracy, f1 = kmeans_scores(x, torch.tensor([0, 0, 1, 2, 2, 2]), num_clusters=2)
    assert accuracy == pytest.approx(5 / 6) and f1 == pytest.approx((0.8 + 0.0 + 1.0) / 3)
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0], [9.1], [9.2]])  # the cluster at 5 is left without a label
    accuracy, f1 = kmeans_scores(x, torch.tensor([0, 0, 0, 1, 1, 1, 1]), num_clusters=3)
    assert accuracy == pytest.approx(6 / 7) and f1 == pytest.approx((1.0 + 2 * 3 / 7) / 2)


def test_report_on_digits():
    """Raw pixels of scikit-learn's digits: known to be nearly separable."""
    images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    train, test = slice(0, 1200), slice(1200, None)
    args = (images[train].float(), labels[train], images[test].float(), labels[test])
    report = representation_report(*args, num_labels=(100, None), num_subsets=3)
    few, everything = report.knn
    assert 0.7 < few.mean < 0.95 < everything.mean and few.deviation > 0
    assert report.linear[0].mean < report.linear[1].mean and report.linear[1].mean > 0.9
    assert 0.6 < report.kmeans_accuracy < 0.95 and abs(report.kmeans_f1 - report.kmeans_accuracy) < 0.1
    assert (few.num_labels, everything.num_labels, report.num_units, report.num_test) == (100, 1200, 64, 597)
    assert "1200" in str(report) and "K-means accuracy" in str(report)
    assert representation_report(*args, num_labels=(100,), num_subsets=2).knn[0].mean == pytest.approx(
        few.mean, abs=0.05
    )


def test_refusals():
    x, y = torch.randn(6, K), torch.arange(6) % 2
    with pytest.raises(ValueError, match=r"site \['w'\]: those of the guide are \['z'\]"):
        posterior_means(model, exact, X, sites=["w"])
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        posterior_means(model, exact, X, num_particles=0)
    with pytest.raises(ValueError, match=r"labels \(N,\), but got \(6, 2\) and \(5,\)"):
        knn_accuracy(x, y[:5], x, y)
    with pytest.raises(ValueError, match="asks for 1000 labels, but there are 6"):
        representation_report(x, y, x, y)
    with pytest.raises(ValueError, match="num_subsets must be at least 1"):
        representation_report(x, y, x, y, num_labels=(None,), num_subsets=0)
