"""Comparisons of guides: what they share and what they measure."""

import math
from dataclasses import replace

import pytest
import torch
from pyro.infer import Trace_ELBO

from papers import (
    RECURSIVE_MIXTURE,
    RECURSIVE_MIXTURE_BERNOULLI,
    VARIATIONAL_LAPLACE,
    VARIATIONAL_LAPLACE_BERNOULLI,
    Job,
    Method,
)
from papers.guide_comparison.comparison import compare
from papers.guide_comparison.methods import CAP, laplace, mixture, recursive_mixture, vae
from papers.guide_comparison.setting import Networks, Setting
from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.guides import AmortizedNormal

TINY = Setting("digits", "gaussian", (8,), 2, epochs=1, train_images=128, test_images=16, num_particles=5)


def test_methods_of_one_seed_start_from_the_same_model():
    weights = []
    for method in (vae(), laplace(1), mixture(2)):
        torch.manual_seed(3)
        model, _, _ = method.build(Networks(TINY, (1, 8, 8), 0.3))
        weights.append([p.detach().clone() for p in model.decoder.parameters()])
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))


def test_the_initial_weights_have_the_papers_bound():
    torch.manual_seed(0)
    networks = Networks(replace(TINY, hidden=(300,)), (1, 8, 8), 0.3)
    weight = networks.vae().decoder[2].weight  # 300 -> 64
    bound = math.sqrt(6 / ((1 + 2 ** (2 / 3)) * 64))
    # the largest of 19,200 uniform numbers is within 1e-3 of the bound but for a probability of exp(-19)
    assert bound * (1 - 1e-3) < weight.abs().max() <= bound


def test_a_convolutional_setting_mirrors_its_encoder():
    networks = Networks(replace(TINY, channels=(4, 6), hidden=(16,)), (1, 8, 8), 0.3)
    model = networks.vae()
    x = torch.rand(5, 64)
    assert model.decoder(model.posterior(x).mean).shape == (5, 64)


def test_a_part_that_is_sorted_by_class_is_measured_at_random():
    setting = replace(TINY, test_images=50)
    part = setting.load().test
    assert torch.equal(setting.measured(part), part[:50])
    order = part.labels.argsort(stable=True)
    in_order = replace(part, images=part.images[order], labels=part.labels[order])
    drawn = setting.measured(in_order)
    assert not torch.equal(drawn, in_order[:50])
    assert torch.equal(drawn, in_order.take(50, seed=0)[:])


def test_what_is_measured():
    found = compare(vae(), TINY, Job(4)).figures
    assert found["IW"] > found["ELBO"] and found["IW − ELBO"] == found["IW"] - found["ELBO"]
    assert found["s/epoch"] > 0 and found["ms/batch"] > 0
    assert found["guide parameters"] == 64 * 8 + 8 + 2 * (8 * 2 + 2)


def test_one_seed_reproduces():
    first, second = (compare(laplace(1), TINY, Job(4)).figures for _ in range(2))
    assert (first["ELBO"], first["IW"]) == (second["ELBO"], second["IW"])


def test_a_run_that_diverges_is_a_finding():
    def failing(networks):
        model = networks.vae()
        return model, lambda x: model.guide(x * math.nan), Trace_ELBO()

    with pytest.raises(ArithmeticError, match="nan"):
        compare(Method("broken", failing), TINY, Job())


def test_a_refinement_is_measured_on_the_trained_model_without_training():
    found = compare(vae(refine=(2,)), TINY, Job())
    refined = found.beside["VAE, then Laplace-2"]
    assert "s/epoch" not in refined and refined["ELBO"] != found.figures["ELBO"]


def test_more_and_bolder_updates_may_follow_on_a_trained_model():
    found = compare(laplace(1, bold=True, refine=[(8, None), (8, 2)]), TINY, Job())
    refined = found.beside["VLAE-1, 0.9^t, then 8 of 0.9^t"]
    halved = found.beside["VLAE-1, 0.9^t, then 8 of 0.9^t, halved where they fail"]
    assert refined["ELBO"] > found.figures["ELBO"] and halved["ELBO"] != refined["ELBO"]


@pytest.mark.slow
def test_R15_a_recursive_mixture_raises_the_likelihood_on_mnist(data_root):
    """With its second component neither near the first nor idle; the paper's cap of 500 nats leaves it idle here.

    The item's remaining part, a smaller gap, holds between log p(x) and ELBO on one model: the mixture's is smaller
    than that of either of its components. Against another model, the VAE's, and with IW-100 in place of log p(x), it is
    some two nats larger: by IW-100 with a Laplace guide, whose own gap is 0.4, IW-100 misses 14 nats of the VAE's
    log p(x) and 11 of the mixture's. With log p(x) itself it is 25.8 nats for both on average over four seeds.
    """
    mnist = replace(TINY, data="mnist", hidden=(256,), latent_dim=10, train_images=6000, batch_size=64, epochs=4)
    mnist = replace(mnist, lr=1e-3, test_images=500, num_particles=100)
    kept = []

    def build(networks):
        kept.append(recursive_mixture(2, CAP).build(networks))
        return kept[0]

    job = Job(2, data_root)
    one, two = compare(vae(), mnist, job).figures, compare(Method("RME-2", build), mnist, job).figures
    assert two["IW"] > one["IW"] + 2 and two["ELBO"] > one["ELBO"]
    test = mnist.load(data_root).test[:500]
    q = kept[0][1].posterior(test)
    first, second = q.components
    z = second.rsample((16,))
    assert (second.log_prob(z) - first.log_prob(z)).mean() > 20
    assert q.log_alpha.exp().mean(0).min() > 0.1
    alone = [AmortizedNormal(kept[0][0].model, encoder) for encoder in kept[0][1].encoder.components]
    assert two["ELBO"] > max(log_likelihood(kept[0][0].model, g, test, 100).elbo.mean() for g in alone)


STUDIES = [VARIATIONAL_LAPLACE, VARIATIONAL_LAPLACE_BERNOULLI, RECURSIVE_MIXTURE, RECURSIVE_MIXTURE_BERNOULLI]


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.name)
class TestStudies:
    def test_smoke(self, study, tmp_path):
        found = study.run("smoke", out=tmp_path / "x.json", progress=False)
        assert not [r.error for r in found.rows if r.error]
        assert {r.case for r in found.rows} >= set(study.cases(study.setting("smoke", "digits")))
        assert all(r.figures["IW − ELBO"] >= 0 for r in found.rows)

    def test_published_figures_are_of_methods_at_the_full_budget(self, study):
        for data, figures in study.published.items():
            setting = study.setting("gpu", data)
            assert set(figures) <= set(study.cases(setting)) and study.remark(setting).startswith("Published: ")


def test_colour_images_are_not_binarised():
    with pytest.raises(ValueError, match="variational_laplace_bernoulli runs on mnist, digits"):
        VARIATIONAL_LAPLACE_BERNOULLI.run("cpu", data="svhn")


def test_subsets_are_labelled():
    assert "subset" in VARIATIONAL_LAPLACE.remark(VARIATIONAL_LAPLACE.setting("cpu", "svhn_subset"))
    assert "recollected" in VARIATIONAL_LAPLACE.remark(VARIATIONAL_LAPLACE.setting("cpu", "mnist"))
