"""Sharpness: the Laplacian is SciPy's, reconstructions at means are the decoder's, and blur shows."""

import pytest
import scipy.ndimage
import torch
from torch import nn

from pyro_vaes.diagnostics import high_frequency_ratio, reconstruct, reconstruction_report
from pyro_vaes.diagnostics.posterior.sharpness import laplacian
from pyro_vaes.models import VAE
from pyro_vaes.nn import Chain, ConvDecoder, ConvEncoder, LaplaceLikelihood, NormalHead


@pytest.fixture
def vae():
    encoder = Chain(ConvEncoder((1, 8, 8), [4], 8), NormalHead(8, 3))
    return VAE(encoder, ConvDecoder(3, [4], (1, 8, 8)), LaplaceLikelihood(event_dim=3), 3).double()


def test_laplacian_is_that_of_scipy():
    x = torch.randn(3, 2, 7, 9, dtype=torch.float64)
    for image, found in zip(x.flatten(0, 1), laplacian(x).flatten(0, 1), strict=True):
        expected = torch.from_numpy(scipy.ndimage.laplace(image.numpy()))[1:-1, 1:-1]
        torch.testing.assert_close(found, expected)


def test_ratio_is_one_for_the_data_and_falls_with_blur():
    x = torch.rand(20, 1, 16, 16)
    blurred = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    assert high_frequency_ratio(x, x) == 1
    assert high_frequency_ratio(3 - 2 * x, x) == pytest.approx(4, rel=1e-5)  # of another level and contrast
    assert high_frequency_ratio(blurred, x) < 0.2


def test_report_measures_what_mean_and_draw_decode_to(vae):
    x = torch.rand(30, 1, 8, 8, dtype=torch.float64)
    report = reconstruction_report(vae.model, vae.guide, x, batch_size=8)
    with torch.no_grad():
        decoded = vae.decoder(vae.posterior(x).mean)
    assert report.l1_mean == pytest.approx((x - decoded).abs().mean().item(), abs=1e-12)
    assert report.high_frequency_ratio == pytest.approx(high_frequency_ratio(decoded, x), abs=1e-12)
    drawn = reconstruct(vae.model, vae.guide, x, batch_size=256)["x"]
    again = reconstruction_report(vae.model, vae.guide, x)
    assert again.l1_sample == pytest.approx((x - drawn).abs().mean().item(), abs=1e-12)
    assert again.l1_sample != again.l1_mean and again.num_data == 30
    assert "from the mean" in str(report)


def test_what_does_not_fit_is_refused(vae):
    with pytest.raises(ValueError, match="flatten=False"):
        reconstruction_report(vae.model, vae.guide, torch.rand(3, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match="name one of them"):
        reconstruction_report(vae.model, vae.guide, torch.rand(3, 1, 8, 8, dtype=torch.float64), site="y")
    with pytest.raises(ValueError, match="3 x 3 pixels"):
        laplacian(torch.rand(4, 2, 2))
    with pytest.raises(ValueError, match="no detail"):
        high_frequency_ratio(torch.rand(2, 5, 5), torch.ones(2, 5, 5))
    with pytest.raises(ValueError, match="One set has"):
        high_frequency_ratio(torch.rand(2, 5, 5), torch.ones(2, 6, 5))
