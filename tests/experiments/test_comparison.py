"""Comparisons of guides: what they share, what they measure, and that nothing measured is lost."""

import json
import math
from dataclasses import replace

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vaes.experiments import RECURSIVE_MIXTURE, VARIATIONAL_LAPLACE, Comparison, Measurement, Method, compare
from pyro_vaes.experiments.methods import laplace, mixture, vae
from pyro_vaes.experiments.setting import Networks, Setting
from pyro_vaes.experiments.study import BUDGETS

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


def test_measurements_survive_and_are_not_repeated(tmp_path, caplog):
    out, built = tmp_path / "results.json", []

    def counted(networks):
        built.append(1)
        return vae().build(networks)

    def failing(networks):
        model = networks.vae()
        return model, lambda x: model.guide(x * math.nan), Trace_ELBO()

    methods = [Method("VAE", counted), Method("broken", failing)]
    first = compare(TINY, methods, [0], out=out, published={"VAE": -1.5}, remark="As printed.", progress=False)
    good, bad = first.measurements
    assert good.log_likelihood > good.elbo and good.seconds_per_epoch > 0 and good.inference_ms > 0
    assert good.guide_parameters == 64 * 8 + 8 + 2 * (8 * 2 + 2)
    assert math.isnan(bad.elbo) and bad.error and "broken" in caplog.text
    assert "broken (1 failed)" in str(first) and "-1.5" in str(first) and str(first).endswith("As printed.")
    again = compare(TINY, [Method("VAE", counted)], [0, 1], out=out, progress=False)
    assert len(built) == 2, "the first seed was there already"
    assert again.measurements[0] == good and [m.seed for m in again.measurements] == [0, 1]
    assert Comparison.read(out).measurements == again.measurements
    assert "±" in json.loads(out.read_text())["table"][2]
    with pytest.raises(ValueError, match="another setting"):
        compare(replace(TINY, epochs=2), methods, [0], out=out)


def test_one_seed_reproduces():
    first, second = (compare(TINY, [laplace(1)], [4], progress=False).measurements[0] for _ in range(2))
    assert (first.elbo, first.log_likelihood) == (second.elbo, second.log_likelihood)


def test_a_refinement_is_measured_on_the_trained_model_without_training():
    found = {m.method: m for m in compare(TINY, [vae(refine=(2,))], [0], progress=False).measurements}
    assert set(found) == {"VAE", "VAE, then Laplace-2"}
    assert math.isnan(found["VAE, then Laplace-2"].seconds_per_epoch)
    assert found["VAE, then Laplace-2"].elbo != found["VAE"].elbo


def test_the_table_is_also_markdown():
    row = Measurement("VAE", 0, -2.0, -1.0, 0.5, 1.5, 100)
    table = Comparison(TINY, [row, replace(row, seed=1, elbo=-3.0)], {"VAE": -0.5}).markdown()
    assert "| VAE | -2.50 ± 0.71 | -1.00 ± 0.00 | 1.50 ± 0.71 | 0.5 | 1.5 | -0.5 |" in table


@pytest.mark.parametrize("experiment", [VARIATIONAL_LAPLACE, RECURSIVE_MIXTURE], ids=lambda e: e.name)
class TestExperiments:
    def test_smoke(self, experiment, tmp_path):
        found = experiment.run("smoke", out=tmp_path / "x.json", progress=False)
        assert not [m.error for m in found.measurements if m.error]
        assert {m.method for m in found.measurements} >= {m.name for m in experiment.methods("smoke")}
        assert all(m.gap >= 0 for m in found.measurements)

    def test_budgets_have_distinct_methods_and_published_names(self, experiment):
        every = {m.name for m in experiment.methods("gpu")}
        for budget in BUDGETS:
            names = [m.name for m in experiment.methods(budget)]
            assert len(names) == len(set(names))
        for figures, remark in experiment.published.values():
            assert set(figures) <= every and remark.startswith("Published: ")

    def test_bad_input(self, experiment):
        with pytest.raises(ValueError, match="The budgets are smoke, cpu, gpu"):
            experiment.run("tpu")
        with pytest.raises(ValueError, match="runs on digits, mnist"):
            experiment.run("smoke", data="mnits")
        with pytest.raises(ValueError, match="not binarised"):
            experiment.run("cpu", data="svhn", output="bernoulli")
        with pytest.raises(ValueError, match=r"compares VAE.*'VEA'"):
            experiment.run("cpu", only=["VEA"])
        with pytest.raises(ValueError, match="'gaussian' or 'bernoulli'"):
            experiment.run("smoke", output="poisson")


def test_subsets_are_labelled():
    assert "subset" in VARIATIONAL_LAPLACE.remark("svhn_subset", "gaussian")
    assert "recollected" in VARIATIONAL_LAPLACE.remark("mnist", "gaussian")
