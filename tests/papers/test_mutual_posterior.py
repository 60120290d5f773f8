"""The experiment on mutual posterior divergence: its figures, its cases, the paper's networks, what is published."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from papers import MUTUAL_POSTERIOR, Findings, Job, Row
from papers.mutual_posterior import experiment
from papers.mutual_posterior.experiment import PLAIN, REGULARISED
from papers.mutual_posterior.measures import divergence_figures, probe_figures
from papers.mutual_posterior.setting import lossy_vae, setting
from pyro_vaes.data import load_data
from pyro_vaes.infer import MutualPosterior_ELBO, WeightAverage, fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood

TINY = setting("smoke", "digits")


class Fixed(torch.nn.Module):
    """An encoder of row numbers: posteriors with these means and scales."""

    def __init__(self, loc, scale):
        super().__init__()
        self.loc, self.scale = loc, scale

    def forward(self, x):
        rows = x[:, 0].long()
        return self.loc[rows], self.scale[rows]


def figures_of(loc, scale):
    vae = VAE(Fixed(loc, scale), MLP(loc.shape[1], [], 1), BernoulliLikelihood(), loc.shape[1])
    return divergence_figures(vae, torch.arange(len(loc)).unsqueeze(1))


def test_the_smoke_budget_gives_finite_figures_and_one_picture_for_each_case(tmp_path):
    only = [PLAIN, f"{REGULARISED}, as printed", f"wide decoder, {REGULARISED}"]
    found = MUTUAL_POSTERIOR.run("smoke", only=only, out=tmp_path / "x.json", progress=False)
    assert [r.case for r in found.rows] == only and not any(r.error for r in found.rows)
    assert all(math.isfinite(v) for r in found.rows for v in r.figures.values())
    assert {"NLL", "KL", "MI", "MPD", "S", "kNN 50", "kNN all", "linear all", "K-means F1"} <= set(
        found.rows[0].figures
    )
    assert len(list((tmp_path / "x").glob("*.png"))) == 3


class Caught(Exception):
    """What an experiment hands to `fit`."""

    def __init__(self, model, guide, data, **options):
        super().__init__()
        self.model, self.options = model, options


def caught(monkeypatch, case, seed=0, shared=TINY):
    def catch(*args, **options):
        raise Caught(*args, **options)

    monkeypatch.setattr(experiment, "fit", catch)
    with pytest.raises(Caught) as found:
        case(shared, Job(seed=seed))
    return found.value


def test_cases_of_one_seed_start_from_the_same_networks_and_differ_in_the_bound(monkeypatch):
    found = {name: caught(monkeypatch, case, seed=3) for name, case in MUTUAL_POSTERIOR.cases(TINY).items()}
    losses = {name: c.options["loss"] for name, c in found.items()}
    assert {name: (x.eta, x.gamma, x.diverse == "pairwise") for name, x in losses.items()} == {
        "eta 0, gamma 0": (0.0, 0.0, False),
        "eta 1, gamma 0": (1.0, 0.0, False),
        "eta 0, gamma 0.5": (0.0, 0.5, False),
        "eta 1, gamma 0.5": (1.0, 0.5, False),
        "eta 2, gamma 0.5": (2.0, 0.5, False),
        "eta 1, gamma 0.5, as printed": (1.0, 0.5, True),
        "wide decoder, eta 0, gamma 0": (0.0, 0.0, False),
        "wide decoder, eta 1, gamma 0.5": (1.0, 0.5, False),
        "wide decoder, eta 2, gamma 0.5": (2.0, 0.5, False),
    }
    weights = {name: list(c.model.__self__.parameters()) for name, c in found.items()}
    for name, parameters in weights.items():
        first = weights[f"wide decoder, {PLAIN}" if "wide" in name else PLAIN]
        assert all(torch.equal(a, b) for a, b in zip(parameters, first, strict=True))
    reach = {n: max(-r for r, _ in c.model.__self__.likelihood.network.receptive_field()) for n, c in found.items()}
    assert reach[PLAIN] == 2 and reach[f"wide decoder, {PLAIN}"] == 4
    other = list(caught(monkeypatch, MUTUAL_POSTERIOR.cases(TINY)[PLAIN], seed=4).model.__self__.parameters())
    assert not torch.equal(other[0], weights[PLAIN][0])


def test_one_sharp_posterior_is_far_from_all_and_the_tail_is_by_j():
    torch.manual_seed(0)
    loc, scale = torch.randn(40, 2).double(), torch.ones(40, 2).double()
    even, _ = figures_of(loc, scale)
    scale[7] = 0.01  # far from everybody as j; as i it is like the others
    sharp, pairs = figures_of(loc, scale)
    assert sharp["pairs: max / median"] > 100 * even["pairs: max / median"]
    assert sharp["S"] > 100 * even["S"] and sharp["pairs: by j"] > 0.7 and sharp["pairs: by i"] < 0.1
    assert abs(even["pairs: by j"] - even["pairs: by i"]) < 1e-6, "with one scale KL is symmetric"
    assert sharp["S"] == pytest.approx(pairs.std().item()) and sharp["pairs: median"] == pairs.median().item()


def test_close_to_collapse_the_terms_are_proportional_to_the_divergence():
    """n = 1500, seed 0; S is a moment of pairs of 8 x n normals: relative standard error about sqrt(2 / n) = 4 %."""
    torch.manual_seed(0)
    loc = 0.01 * torch.randn(1500, 8).double()
    figures, _ = figures_of(loc, torch.ones_like(loc))
    away = 8 * math.log(2) * (1 - figures["L_div / (D ln 2)"])
    assert away == pytest.approx(figures["MPD"] / 2, rel=1e-3)
    assert loc.square().sum(1).mean().item() / 2 == pytest.approx(figures["MPD"] / 2, rel=4e-3)  # KL to N(0, I)
    assert figures["S"] == pytest.approx(math.sqrt(2 / 8) * figures["MPD"], rel=0.12)


def test_divergence_figures_are_those_of_the_bound():
    torch.manual_seed(0)
    loc, scale = torch.randn(30, 3).double(), torch.randn(30, 3).double().exp()
    figures, pairs = figures_of(loc, scale)

    def guide():
        with pyro.plate("data", 30):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    bound = MutualPosterior_ELBO(eta=1.0).pairs(guide)
    assert figures["MPD"] == pytest.approx(bound.mean.sum().item()) == pytest.approx(pairs.mean().item())
    assert figures["L_div / (D ln 2)"] == pytest.approx(bound.diversity().item() / (3 * math.log(2)))
    same, _ = figures_of(loc[:1].expand(30, 3), scale[:1].expand(30, 3))
    assert same["L_div / (D ln 2)"] == pytest.approx(1.0) and same["S"] == 0 and math.isnan(same["pairs: by j"])


def test_probes_need_common_labels():
    data = load_data("digits", flatten=False).take(100, test=50)
    vae = lossy_vae(TINY, data.image_shape, TINY.kernels)
    assert set(probe_figures(vae, data, (20,))) == {
        "K-means", "K-means F1", "kNN 20", "kNN all", "linear 20", "linear all",
    }  # fmt: skip
    assert data.test is not None and data.test.labels is not None
    assert probe_figures(vae, replace(data, test=replace(data.test, labels=data.test.labels + 5)), (20,)) == {}
    assert probe_figures(vae, replace(data, test=replace(data.test, labels=None)), (20,)) == {}


@pytest.mark.parametrize("wide", [False, True])
def test_the_papers_networks_train(wide):
    s = setting("gpu", "mnist")
    torch.manual_seed(0)
    vae = lossy_vae(s, (1, 28, 28), s.wide_kernels if wide else s.kernels)
    x = torch.bernoulli(torch.full((2, 1, 28, 28), 0.2))
    MutualPosterior_ELBO(eta=1.0, gamma=0.5).differentiable_loss(vae.model, vae.guide, x).backward()
    missing = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert (s.batch_size, s.lr, s.patience, s.num_particles, s.latent_dim) == (100, 1e-3, 20, 512, 32)


def test_the_papers_schedule_halves_the_rate_and_ends(monkeypatch):
    ended = []
    monkeypatch.setattr(experiment, "fit", lambda *a, **o: ended.append(fit(*a, **o)) or ended[0])
    # a rate at which nothing moves: no epoch is better than the first by float32's resolution, whatever comes
    case = MUTUAL_POSTERIOR.cases(TINY)[PLAIN]
    case(replace(TINY, epochs=40, patience=1, lr=1e-12), Job(seed=0))
    (history,) = ended
    rates = [rate / 1e-12 for rate in history.learning_rate]
    assert rates[0] == pytest.approx(1, abs=1e-4) and rates[-1] < 0.3, "halved twice at least"
    assert history.stopped and len(history.valid) < 10


def test_the_papers_networks_start_from_data_and_end_as_an_average(monkeypatch):
    residual = replace(TINY, residual=True, decoder_channels=8, kernels=(3, 3, 3), patience=1)
    monkeypatch.setattr(experiment, "INITIAL_IMAGES", 200)
    found = caught(monkeypatch, MUTUAL_POSTERIOR.cases(residual)[PLAIN], shared=residual)
    assert any(isinstance(c, WeightAverage) for c in found.options["callbacks"])
    vae = found.model.__self__
    outputs = []
    (convolution, *_) = [m for m in vae.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    convolution.register_forward_hook(lambda _, __, y: outputs.append(y))
    vae.posterior(residual.load(Job()).train[:200])
    assert outputs[0].std((0, 2, 3), correction=0).sub(1).abs().max() < 0.3, "other bits than at the start"
    assert outputs[0].mean((0, 2, 3)).abs().max() < 0.3


def test_published_figures_are_the_specs():
    mnist, omniglot = (MUTUAL_POSTERIOR.published[d] for d in ("mnist", "omniglot28"))
    assert mnist["MAE (recollected)"]["NLL"] == 77.98
    assert omniglot["VAE (He et al.)"] == {"NLL": 89.41, "KL": 1.5, "MI": 1.4}
    assert omniglot["beta 0.2 (He et al.)"] == {"NLL": 105.19, "KL": 69.1, "MI": 3.9}
    remarks = {d: MUTUAL_POSTERIOR.remark(setting("cpu", d)) for d in MUTUAL_POSTERIOR.data}
    assert "recollected" in remarks["mnist"] and "10,000 training images" in remarks["mnist"]
    assert "not comparable" in remarks["omniglot28"] and "Published" not in remarks["digits"]
    assert "the prior not initialised from data" in MUTUAL_POSTERIOR.remark(setting("gpu", "mnist"))


def test_the_summary_compares_seed_by_seed():
    def row(case, seed, kl, nll, s, knn):
        return Row(case, seed, {"KL": kl, "NLL": nll, "S": s, "kNN all": knn})

    rows = [row(PLAIN, 1, 2.0, 80.0, 10.0, 0.5), row(PLAIN, 2, 4.0, 81.0, 10.0, 0.6)]
    assert MUTUAL_POSTERIOR.summary(Findings("x", {}, rows)) == []
    rows.append(row(REGULARISED, 1, 6, 80.5, 5, 0.9))
    (line,) = MUTUAL_POSTERIOR.summary(Findings("x", {}, rows))
    assert line == (
        "eta 1, gamma 0.5 against eta 0, gamma 0, 1 seed: KL times 3 (3 to 3), NLL plus 0.5 (0.5 to 0.5), "
        "kNN all plus 0.4 (0.4 to 0.4)."
    )
    rows += [row(REGULARISED, 2, 8, 81.0, 10, 0.6), row("eta 1, gamma 0", 2, 8, 81.0, 40, 0.6)]
    first, second = MUTUAL_POSTERIOR.summary(Findings("x", {}, rows))
    assert "2 seeds: KL times 2.5 (2 to 3), NLL plus 0.25 (0 to 0.5)" in first
    assert second == "eta 1, gamma 0.5 against eta 1, gamma 0, 1 seed: S times 0.25 (0.25 to 0.25)."
    rows.append(row("eta 1, gamma 0", 1, 0.1, 81.0, 0.0, 0.1))  # collapsed
    assert "2 seeds: S times 0.25 (0.25 to 0.25) in 1 of them." in MUTUAL_POSTERIOR.summary(Findings("x", {}, rows))[1]
    only = [row("eta 1, gamma 0", 1, 0.1, 81.0, 0.0, 0.1), row(REGULARISED, 1, 6, 80.5, 5, 0.9)]
    assert "S times undefined" in MUTUAL_POSTERIOR.summary(Findings("x", {}, only))[0]
