"""How to train your VAE: the settings are the specified ones, the smoke budget runs, and samples are what they say."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from pyro import poutine

from papers import AGGREGATE_POSTERIOR, Findings, Row
from papers.aggregate_posterior.experiment import Case, FaceSetting, TrainedInBfloat16, faces
from papers.aggregate_posterior.measures import correlated, effective_units, fitted_aggregate, generate, portraits_of


def test_settings_are_the_published_and_the_scaled_one():
    full, scaled, cpu = (
        AGGREGATE_POSTERIOR.setting(budget, data)
        for budget, data in (("gpu", "celeba_hq"), ("gpu", "lfw64"), ("cpu", "lfw64"))
    )
    assert (full.image_shape, full.latent_dim, full.filters) == ((3, 256, 256), 512, 128)
    assert (full.batch_size, full.lr, full.epochs, full.residual_weights) == (10, 1e-4, 300, (5000.0,))
    assert (scaled.image_shape, scaled.latent_dim, scaled.filters) == ((1, 64, 64), 128, 64)
    assert (scaled.batch_size, scaled.lr, scaled.epochs, scaled.residual_weights) == (64, 2e-4, 100, (5000.0, 104.2))
    assert (cpu.hidden, cpu.dense_epochs, cpu.dense_lr, cpu.dense_weights) == ((256, 256), 10, 1e-3, (5000.0, 104.2))
    for setting in (full, scaled, cpu):
        assert (setting.variance_weight, setting.adversarial_weight) == (0.1, 100.0)
    for setting in (full, scaled):
        assert not setting.bfloat16
    assert list(AGGREGATE_POSTERIOR.cases(scaled)) == [
        "proposed, discriminator, w 5000",
        "standard, w 5000",
        "proposed, w 5000",
        "proposed, discriminator, w 104.2",
        "standard, w 104.2",
        "proposed, w 104.2",
    ]
    assert not AGGREGATE_POSTERIOR.published and "prints no figure" in AGGREGATE_POSTERIOR.remark(cpu)


def test_smoke_runs_with_finite_figures_and_pictures(tmp_path):
    found = AGGREGATE_POSTERIOR.run("smoke", out=tmp_path / "found.json", progress=False)
    assert [row.case for row in found.rows] == list(
        AGGREGATE_POSTERIOR.cases(AGGREGATE_POSTERIOR.setting("smoke", "digits"))
    )
    for row in found.rows:
        assert not row.error and all(math.isfinite(v) for v in row.figures.values()), row
        assert ("real right" in row.figures) == ("discriminator" in row.case)
    assert {"L1 mean", "sharpness", "dead", "Var min", "KID aggregate", "MI", "in use"} <= found.rows[0].figures.keys()
    assert len(list((tmp_path / "found").glob("*variants.png"))) == len(found.rows)
    assert len(found.summary) == 3 and "against standard" in found.summary[0]


def test_summary_compares_with_the_standard_case_of_the_same_networks_and_weight():
    rows = [
        Row("proposed, w 5, dense", 1, {"dead": 0.0, "L1 mean": 0.1}),
        Row("standard, w 5, dense", 1, {"dead": 7.0, "L1 mean": 0.2}),
        Row("standard, w 5", 1, {"dead": 9.0, "L1 mean": 0.3}),
        Row("proposed, discriminator, w 5", 1, {"dead": 1.0, "L1 mean": 0.4}),
    ]
    assert AGGREGATE_POSTERIOR.summary(Findings("aggregate_posterior", {}, rows)) == [
        "proposed, w 5, dense against standard, w 5, dense: dead units 0 against 7, L1 0.1 against 0.2.",
        "proposed, discriminator, w 5 against standard, w 5: dead units 1 against 9, L1 0.4 against 0.3.",
    ]


def test_the_likelihood_weighs_the_mean_error_by_w():
    s = FaceSetting("digits", (1, 8, 8), 8, 4, (16,))
    for dense in (True, False):
        vae, x = Case(True, 5000.0, dense=dense).vae(s), torch.rand(3, 1, 8, 8)
        x_hat = vae.decoder(torch.zeros(3, 8))
        loss = -vae.likelihood(x_hat).log_prob(x) - 64 * math.log(2 * 64 / 5000)
        torch.testing.assert_close(loss, 5000 * (x - x_hat).abs().mean((1, 2, 3)), rtol=1e-4, atol=1e-2)


def test_half_precision_is_for_training_alone():
    network = TrainedInBfloat16(torch.nn.Conv2d(1, 4, 3))
    x = torch.rand(2, 1, 8, 8)
    exact = network.network(x)
    rough = network(x)
    assert rough.dtype == x.dtype and not torch.equal(rough, exact) and torch.allclose(rough, exact, atol=2e-2)
    assert torch.equal(network.eval()(x), exact)


def test_a_folder_of_colour_pictures_is_read(tmp_path):
    s = AGGREGATE_POSTERIOR.setting("smoke", "celeba_hq")
    with pytest.raises(FileNotFoundError, match="CelebAMask-HQ/CelebA-HQ-img"):
        faces(s, tmp_path)
    folder = tmp_path / "CelebAMask-HQ" / "CelebA-HQ-img"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(10, 80, 80, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        PIL.Image.fromarray(picture).save(folder / f"{number}.jpg")
    data = faces(s, tmp_path)
    assert data.image_shape == (3, 64, 64) and (len(data.train), len(data.test)) == (8, 2)
    assert data.train.x.min() < -0.3 and data.train.x.max() > 0.3
    again = [data.train.batch(slice(0, 8), torch.Generator().manual_seed(seed))[0] for seed in (0, 1)]
    assert not torch.equal(*again), "training images are mirrored at random"


def test_samples_come_from_prior_or_aggregate_and_leave_the_generator_alone():
    s = AGGREGATE_POSTERIOR.setting("smoke", "digits")
    data, state = faces(s), torch.get_rng_state()
    vae = Case(True, 5000.0).vae(s)
    state = torch.get_rng_state()
    images = generate(vae.model, 300, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (300, 1, 8, 8) and images.abs().max() <= 1
    assert torch.equal(images, generate(vae.model, 300, seed=3))
    assert fitted_aggregate(vae, data).num_data == len(data.train)


def test_correlated_draws_have_the_moments_of_the_aggregate():
    """20,000 draws, seed 0: means within 5 standard errors; covariances, with errors below 2 %, within 8 %."""
    s = AGGREGATE_POSTERIOR.setting("smoke", "digits")
    vae, x = Case(True, 5000.0).vae(s), faces(s).train.x
    with torch.no_grad():
        q = vae.posterior(x)
        draws = poutine.trace(correlated(vae, x)).get_trace(size=20_000).nodes["z"]["value"]
    covariance = torch.cov(q.mean.mT, correction=0) + q.variance.mean(0).diag()
    scale = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - q.mean.mean(0)).abs() < 5 * scale / 20_000**0.5).all()
    assert ((torch.cov(draws.mT) - covariance).abs() < 0.08 * scale * scale[:, None]).all()


def test_effective_units_count_what_varies_independently():
    independent, common = torch.randn(4000, 6), torch.randn(4000, 1)
    assert 5.9 < effective_units(independent) <= 6
    assert effective_units(common.expand(-1, 6)) == pytest.approx(1)
    assert effective_units(common + 0 * independent + torch.tensor([1.0, 2, 3, 4, 5, 6])) == pytest.approx(1)


def test_portraits_are_squares_of_forty_people(data_root):
    x, people = portraits_of(data_root)
    assert x.shape == (400, 1, 64, 64) and x.abs().max() <= 1
    assert people.bincount().tolist() == [10] * 40
