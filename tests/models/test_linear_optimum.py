"""A linear VAE with learned noise, trained by ``fit`` on real images, reaches probabilistic PCA's maximum likelihood.

With a linear decoder the exact posterior is normal, and at the optimum its covariance is diagonal (the decoder's
columns are orthogonal), so the bound is tight: the train ELBO equals the closed-form maximum of the likelihood. Anchors
for scikit-learn's digits, pixels / 16, N = 1797: 0.006 nats with 2 latents and 17.452 with 10.

The encoder is linear in whitened pixels, which is linear in pixels: without the fixed first layer the gradient reaches
the directions of little variance ten times later. Every step sees all data.
"""

import functools
import math

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vaes.data import load_data
from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.infer import LearningRate, evaluate, fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead
from pyro_vaes.theory import ProbabilisticPCA, probabilistic_pca

EPOCHS = 800  # of one step each


def whitening(x: Tensor) -> nn.Linear:
    """A fixed linear layer after which the pixels are uncorrelated, with variances of at most 1."""
    mean, covariance = x.mean(0), torch.cov(x.mT)
    variances, directions = torch.linalg.eigh(covariance)

    # some pixels are 0 in every image
    scaled = directions * (variances + 1e-3).rsqrt()
    weight = scaled @ directions.mT

    layer = nn.Linear(*weight.shape).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ mean)
    return layer


def expected_elbo(vae: VAE, x: Tensor) -> float:
    """E_q log p(x | z) - KL(q(z | x) || N(0, I)) in closed form, mean over the data, float64."""
    x = x.double()
    q = vae.posterior(x).base_dist
    weight, bias, noise_var = vae.decoder[0].weight, vae.decoder[0].bias, vae.likelihood.scale**2
    error = (x - q.loc @ weight.T - bias).square().sum(-1) + (q.scale.square() @ weight.square().T).sum(-1)
    log_px = -0.5 * (x.shape[1] * (2 * math.pi * noise_var).log() + error / noise_var)
    kl = 0.5 * (q.loc.square() + q.scale.square() - 1).sum(-1) - q.scale.log().sum(-1)
    return (log_px - kl).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("latent_dim", "anchor", "tolerance"), [(2, 0.006, 0.01), (10, 17.452, 0.02)])
def test_fit_reaches_the_closed_form_optimum(latent_dim, anchor, tolerance):
    x = load_data("digits", split=(0, 0)).train[:]
    assert x.shape == (1797, 64)

    torch.manual_seed(0)
    head = NormalHead(64, latent_dim, scale=0.5, learn_scale=True)
    encoder = Chain(whitening(x), head)
    likelihood = GaussianLikelihood(scale=0.3, learn_scale=True)
    vae = VAE(encoder, MLP(latent_dim, [], 64), likelihood, latent_dim)

    fit(
        vae.model,
        vae.guide,
        x,
        loss=TraceMeanField_ELBO(),
        optim=functools.partial(torch.optim.Adam, lr=0.1),
        epochs=EPOCHS,
        batch_size=len(x),
        callbacks=[LearningRate(functools.partial(CosineAnnealingLR, T_max=EPOCHS, eta_min=1e-5))],
        seed=0,
        progress=False,
    )

    vae.double()
    with torch.no_grad():
        elbo = expected_elbo(vae, x)
    optimum = probabilistic_pca(x, latent_dim).log_likelihood
    assert abs(optimum - anchor) < 5e-4, "the anchor itself"
    assert elbo <= optimum + 1e-6, "no bound exceeds the maximum likelihood"
    assert abs(elbo - anchor) < tolerance

    # the estimators agree with the closed forms on this model: one draw has a standard deviation of about 3 nats
    sampled = -evaluate(vae.model, vae.guide, x.double(), seed=1)
    assert abs(sampled - elbo) < 4 * 4.0 / math.sqrt(1797)

    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()
    exact = ProbabilisticPCA(bias, weight, vae.likelihood.scale.detach() ** 2).log_prob(x.double())
    estimate = log_likelihood(vae.model, vae.guide, x.double(), 200, seed=1)
    error = (estimate.standard_error.square().sum().sqrt() / 1797).item()
    assert abs((estimate.log_likelihood - exact).mean().item()) < 4 * error + 1e-3
