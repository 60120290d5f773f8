"""The lossy experiment: cases are one network with and without z, figures add up, settings are the paper's."""

import math

import pytest
import torch

from papers import LOSSY_COINS, VARIATIONAL_LOSSY, Findings, Job, Row
from papers.variational_lossy.binary_images import (
    ALONE,
    FACTORISED,
    FLOW,
    NORMAL,
    Images,
    cases,
    remark,
    setting,
    summary,
)
from papers.variational_lossy.networks import LossySetting, lossy_vae, unconditional_decoder
from pyro_vaes.nn import StandardNormal, pixel_cnn_layers


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return VARIATIONAL_LOSSY.run("smoke", out=tmp_path_factory.mktemp("lossy") / "x.json", progress=False)


def test_smoke_measures_every_case(found):
    assert [r.case for r in found.rows] == [ALONE, NORMAL, FLOW, "AF prior, window 4x2", FACTORISED]
    for row in found.rows:
        assert not row.error and all(math.isfinite(v) for v in row.figures.values())
        figures = row.figures
        assert figures["KL bits"] == pytest.approx(figures["KL"] / math.log(2))
        if row.case == ALONE:  # exact, and no code
            assert figures["KL"] == 0 and figures["NLL"] == pytest.approx(figures["-ELBO"], rel=1e-5)
            assert figures["two-part"] == pytest.approx(figures["NLL"], rel=1e-5)
        else:
            assert 0 < figures["KL"] < figures["-ELBO"] < figures["two-part"] and figures["NLL"] < figures["-ELBO"]


def test_one_seed_reproduces(found):
    s = setting("smoke", "digits")
    again = cases(s)[FLOW](s, Job(1)).figures
    timed = "s/64 drawn"
    first = next(r.figures for r in found.rows if r.case == FLOW)
    assert {n: v for n, v in again.items() if n != timed} == {n: v for n, v in first.items() if n != timed}


def test_the_unconditional_decoder_is_the_network_of_the_pair_without_z():
    s = setting("cpu", "mnist")
    by_itself, pair = (
        unconditional_decoder(s, (1, 28, 28)),
        lossy_vae(s, (1, 28, 28), pixel_cnn_layers(s.layers), flow=False),
    )
    ours, theirs = (m.likelihood.state_dict() for m in (by_itself, pair))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert by_itself.likelihood.network.receptive_field() == pair.likelihood.network.receptive_field()


def test_the_setting_of_the_paper():
    s = setting("gpu", "binarized_mnist")
    assert s.tied and not setting("gpu", "mnist").tied
    vae = lossy_vae(s, (1, 28, 28), pixel_cnn_layers(s.layers), flow=True)
    network = vae.likelihood.network
    assert len(network.receptive_field()) == 69 and network.context_shape == (4, 28, 28)
    assert [step.net.num_params for step in vae.prior.steps] == [1] * 4 and vae.latent_dim == 64
    assert isinstance(lossy_vae(s, (1, 28, 28), None, flow=False).prior, StandardNormal)
    assert (s.lr, s.average, s.free_bits) == (2e-3, 0.998, pytest.approx(0.01 * 784))
    assert all("parametrizations" in n or "bias" in n for n, _ in vae.encoder.named_parameters())


def test_published_figures_are_those_of_the_specification():
    published = VARIATIONAL_LOSSY.published
    assert {c: f.get("NLL") for c, f in published["mnist"].items()} == {
        ALONE: 87.55,
        NORMAL: 79.48,
        FLOW: 78.94,
        "AF prior, their best": 78.53,
    }
    assert published["mnist"][NORMAL]["KL"] == 10.60 and published["mnist"][FLOW]["KL"] == 11.73
    static = published["binarized_mnist"]
    assert static[FLOW]["NLL"] == 79.03 and static[FLOW]["KL"] == pytest.approx(13.3, abs=0.05)
    assert static[FACTORISED]["KL bits"] == 37.3 and static[FACTORISED]["KL"] == pytest.approx(25.9, abs=0.05)
    for data in VARIATIONAL_LOSSY.data:
        assert ("another" in remark(LossySetting(data))) == (data in ("omniglot28", "caltech101_silhouettes"))
    assert "sees 69 pixels" in remark(LossySetting("mnist")) and "all training images" in remark(LossySetting("mnist"))


def test_gains_are_taken_seed_by_seed():
    def row(case, seed, nll, kl):
        return Row(case, seed, {"NLL": nll, "-ELBO": nll + 2, "KL": kl})

    rows = [row(ALONE, 1, 100.0, 0.0), row(FACTORISED, 1, 95.0, 25.0)]
    rows += [row(NORMAL, s, 90.0 + s, 12.0) for s in (1, 2, 3)] + [row(FLOW, s, 90.0, 13.0) for s in (2, 1)]
    lines = summary(Findings("x", {}, rows))
    assert lines[0] == "z improves the NLL of the same decoder by 9.00 nats (by seed: 9.00)"
    assert lines[1] == "the AF prior improves the NLL by 1.50 ± 0.71 nats (by seed: 1.00, 2.00)"
    assert lines[2] == "the AF prior improves the bound by 1.50 ± 0.71 nats (by seed: 1.00, 2.00)"
    assert lines[3] == "code in per cent of the factorised decoder's: N(0, I) prior 48%, AF prior 52%"
    assert summary(Findings("x", {}, [])) == []


def test_the_final_models_of_the_paper_are_trained_on_the_validation_part_too(data_root):
    everything = Images.load(setting("gpu", "binarized_mnist"), Job(root=data_root))
    assert len(everything.train) == 60_000 and len(everything.test) == 2000
    assert isinstance(everything.train, torch.Tensor) and set(everything.train[:50].unique().tolist()) == {0.0, 1.0}
    grey = Images.load(setting("gpu", "mnist"), Job(root=data_root))
    assert len(grey.train) == 60_000 and not isinstance(grey.train, torch.Tensor)
    assert len(Images.load(setting("cpu", "binarized_mnist"), Job(root=data_root)).train) == 20_000
    ink = everything.test[:].flatten(1).mean(1)  # the file's test part is sorted by digit: blocks of it differ
    blocks = torch.stack([block.mean() for block in ink.split(200)])
    assert blocks.std() < 3 * ink.std() / 200**0.5
    silhouettes = Images.load(setting("gpu", "caltech101_silhouettes"), Job(root=data_root))
    assert len(silhouettes.train) == 8671 - 2307


def test_the_toy_runs_at_smoke_and_states_its_exact_entropies():
    found = LOSSY_COINS.run("smoke", progress=False)
    assert [r.case for r in found.rows] == ["window 0", "window 1", "window 15"]
    for row in found.rows:
        assert row.figures["-ELBO - H"] > -0.1 and row.figures["KL"] >= 0
    assert "H(x) = 5.3421" in found.remark and "tells 0.5832" in found.remark
    assert LOSSY_COINS.setting("cpu", "coins").steps == 2000
