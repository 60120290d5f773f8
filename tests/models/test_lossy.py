"""The lossy auto-encoder: T31, T33, T35 and T36 of its specification, sampling time, and the Laplace guide on it."""

import functools
import itertools
import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from papers.variational_lossy import coins
from pyro_vaes.diagnostics import code_length, log_likelihood, reconstruct, to_datatree
from pyro_vaes.guides import AmortizedLaplace
from pyro_vaes.guides.given import Given
from pyro_vaes.guides.joint import Joint
from pyro_vaes.guides.laplace.linearise import Lineariser
from pyro_vaes.infer import FreeBits_ELBO, check, fit, scale_latents
from pyro_vaes.models import LossyVAE, UnconditionalDecoder
from pyro_vaes.nn import (
    AutoregressiveLikelihood,
    AutoregressivePrior,
    BernoulliLikelihood,
    Chain,
    ConvDecoder,
    ConvEncoder,
    DiscretizedLogisticMixtureLikelihood,
    NormalHead,
    PixelCNN,
    StandardNormal,
    pixel_cnn_layers,
    pixel_cnn_window,
)

SHAPE = (1, 4, 4)


def images(n=6):
    return torch.bernoulli(torch.full((n, *SHAPE), 0.4, dtype=torch.float64))


def likelihood(layers=None):
    network = PixelCNN(SHAPE, 6, pixel_cnn_layers(2) if layers is None else layers, context_channels=2)
    return AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)


def lossy(prior=None, decoder=None):
    encoder = Chain(ConvEncoder(SHAPE, [2], 8), NormalHead(8, 3))
    prior = AutoregressivePrior(3, [8], steps=2) if prior is None else prior
    decoder = ConvDecoder(3, [3], (2, 4, 4)) if decoder is None else decoder
    return LossyVAE(encoder, decoder, likelihood(), 3, prior=prior).double()


def gradients(loss, model, guide, module, x, seed=1):
    pyro.set_rng_seed(seed)
    value = loss.differentiable_loss(model, guide, x)
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    zero = [torch.zeros_like(p) for p in parameters]
    return value.detach(), {n: z if g is None else g for n, g, z in zip(names, found, zero, strict=True)}


def test_sites_and_sampling():
    vae = lossy()
    trace = poutine.trace(vae.model).get_trace(images())
    assert type(trace.nodes["z"]["fn"]).__name__ == "AutoregressiveFlow"
    assert trace.nodes["x"]["fn"].event_shape == SHAPE and trace.nodes["x"]["is_observed"]
    assert [f.name for f in trace.nodes["x"]["cond_indep_stack"]] == ["data"]
    draws = Predictive(vae.model, num_samples=7)()
    assert draws["x"].shape == (7, 1, *SHAPE) and set(draws["x"].unique().tolist()) <= {0.0, 1.0}
    steps = LossyVAE(nn.Identity(), nn.Identity(), likelihood(), 5).prior.steps  # the paper's: mean-only, two times 640
    assert [step.net.num_params for step in steps] == [1] * 4
    assert [len(layer.weight) for layer in steps[0].net.layers[::2]] == [640, 640, 5]


class _Whitening(dist.transforms.Transform):
    """z -> eps, as a transform of the posterior."""

    domain = codomain = dist.constraints.real_vector
    bijective = True

    def __init__(self, flow):
        super().__init__(cache_size=1)
        self.flow = flow

    def _call(self, z):
        return self.flow().whiten(z)[0]

    def log_abs_det_jacobian(self, z, eps):
        return self.flow().whiten(z)[1]


@pytest.mark.parametrize("affine", [False, True])
def test_T31_a_flow_prior_is_an_inverse_flow_posterior_with_a_deeper_decoder(affine):
    """Eq. (12) = eq. (14) for each datum, and in Pyro: the two pairs have one loss and one gradient at one seed."""
    vae, x = lossy(AutoregressivePrior(3, [8], steps=2, affine=affine)), images()

    def model(x):
        pyro.module("vae", vae)
        with pyro.plate("data", len(x)):
            prior = StandardNormal(3).double()()
            eps = pyro.sample("eps", prior)
            pyro.sample("x", vae.likelihood(vae.decoder(vae.prior().colour(eps))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("eps", dist.TransformedDistribution(vae.posterior(x), [_Whitening(vae.prior)]))

    q, p = vae.posterior(x), vae.prior()
    z = q.rsample()
    eps, log_det = p.whiten(z)
    given = vae.likelihood(vae.decoder(z)).log_prob(x)
    twelve = given + p.log_prob(z) - q.log_prob(z)
    standard = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    fourteen = (
        vae.likelihood(vae.decoder(p.colour(eps))).log_prob(x) + standard.log_prob(eps) - (q.log_prob(z) - log_det)
    )
    torch.testing.assert_close(twelve, fourteen, rtol=0, atol=1e-10)

    ours, slopes = gradients(Trace_ELBO(), vae.model, vae.guide, vae, x)
    theirs, others = gradients(Trace_ELBO(), model, guide, vae, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for name in slopes:
        torch.testing.assert_close(slopes[name], others[name], rtol=1e-8, atol=1e-8)


def test_T33_free_bits_leave_the_kl_alone_below_the_floor_and_the_bound_above_it():
    vae, x = lossy(), images()
    with torch.no_grad():
        vae.encoder[1].loc.bias.add_(2.0)  # a KL well above 0
    pyro.set_rng_seed(1)
    q = vae.posterior(x)
    z = q.rsample()
    kl = (q.log_prob(z) - vae.prior().log_prob(z)).mean().item()
    assert kl > 1
    _, above = gradients(FreeBits_ELBO(0.5 * kl), vae.model, vae.guide, vae, x)
    _, plain = gradients(Trace_ELBO(), vae.model, vae.guide, vae, x)
    for name in plain:
        torch.testing.assert_close(above[name], plain[name], rtol=1e-10, atol=1e-12)
    _, below = gradients(FreeBits_ELBO(2.0 * kl), vae.model, vae.guide, vae, x)

    class Reconstruction(Trace_ELBO):
        def differentiable_loss(self, model, guide, x):
            return -vae.likelihood(vae.decoder(guide(x))).log_prob(x).sum()

    _, wanted = gradients(Reconstruction(), vae.model, vae.guide, vae, x)
    for name in wanted:
        torch.testing.assert_close(below[name], wanted[name], rtol=1e-10, atol=1e-12)
        if name.startswith("prior."):
            assert (below[name] == 0).all() and (above[name] != 0).any()


def test_the_kl_weight_of_soft_free_bits_reaches_the_flow_prior():
    vae, x = lossy(), images()
    pyro.set_rng_seed(1)
    z, q, p = vae.guide(x), vae.posterior(x), vae.prior()
    wanted = 0.3 * (q.log_prob(z) - p.log_prob(z)).sum() - vae.likelihood(vae.decoder(z)).log_prob(x).sum()
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        pyro.set_rng_seed(1)
        with scale_latents(0.3):
            torch.testing.assert_close(loss.differentiable_loss(vae.model, vae.guide, x), wanted)


def test_the_toy_has_the_entropies_of_the_specification():
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=coins.N)))
    assert coins.log_prob(x).exp().sum().item() == pytest.approx(1.0)
    assert coins.entropies() == pytest.approx((5.3421, 4.7589), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "low", "high"), [(0, 2.0, math.inf), (1, 0.5, 0.75), (15, -0.01, 0.4)])
def test_T35_the_window_decides_what_the_code_holds(size, low, high):
    """2000 steps of batch 256 at seed 0; 20,000 test sequences, on which H is the mean of -log p(x) as well."""
    vae, generator = coins.coin_vae(size), torch.Generator().manual_seed(0)
    optim = torch.optim.Adam(vae.parameters(), lr=3e-3)
    with pyro.validation_enabled(False):
        for _ in range(2000):
            loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, coins.draw(256, generator)) / 256
            optim.zero_grad()
            loss.backward()
            optim.step()
    test = coins.draw(20_000, generator)
    report = code_length(vae.model, vae.guide, test, num_particles=2, batch_size=4000)
    assert low < report.code.mean() < high
    assert report.bits_back.mean() >= -coins.log_prob(test).mean() - 0.02


class _Constant(nn.Module):
    """A decoder that does not look at z."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    def forward(self, z):
        return self.context.expand(*z.shape[:-1], *self.context.shape)


def test_T36_the_unconditional_decoder_is_the_conditional_one_with_a_constant_context():
    alone, x = UnconditionalDecoder(likelihood()).double(), images()
    nn.init.normal_(alone.context)
    vae = lossy(decoder=_Constant(alone.context))
    vae.likelihood = alone.likelihood
    log_prob = -Trace_ELBO().loss(alone.model, alone.guide, x)
    assert log_prob == pytest.approx(alone.likelihood(alone.context).log_prob(x).sum().item())
    pyro.set_rng_seed(1)
    z, q, p = vae.guide(x), vae.posterior(x), vae.prior()
    kl = (q.log_prob(z) - p.log_prob(z)).sum().item()
    pyro.set_rng_seed(1)  # the bound is the decoder's own log p(x) less the KL, whatever q
    assert -Trace_ELBO().loss(vae.model, vae.guide, x) == pytest.approx(log_prob - kl, rel=1e-12)

    def prior_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())

    loss, slopes = gradients(Trace_ELBO(), vae.model, prior_guide, vae, x)  # the optimum: KL = 0
    assert -loss.item() == pytest.approx(log_prob, rel=1e-12)
    assert all(s.abs().max() < 1e-12 for n, s in slopes.items() if n.startswith("prior."))


def test_the_unconditional_decoder_trains_and_is_measured_like_any_pair():
    alone, x = UnconditionalDecoder(likelihood()).double(), images(32)
    assert check(alone.model, alone.guide, x).ok
    optim = functools.partial(torch.optim.Adam, lr=1e-2)
    history = fit(alone.model, alone.guide, x, epochs=5, batch_size=8, seed=0, progress=False, optim=optim)
    assert history.train[-1] < history.train[0]
    exact = alone.likelihood(alone.context).log_prob(x).detach()
    result = log_likelihood(alone.model, alone.guide, x, 3)
    torch.testing.assert_close(result.log_likelihood, exact)
    report = code_length(alone.model, alone.guide, x, num_particles=1)
    torch.testing.assert_close(report.bits_back, -exact)
    assert (report.code == 0).all()
    with pytest.raises(ValueError, match="takes an AutoregressiveLikelihood"):
        UnconditionalDecoder(BernoulliLikelihood(event_dim=3))


def test_the_decoder_must_return_the_context():
    with pytest.raises(ValueError, match=r"decoder returns \(6, 3, 4, 4\), but the autoregressive network takes"):
        lossy(decoder=ConvDecoder(3, [3], (3, 4, 4))).model(images())


def test_grey_data_are_refused_in_words():
    vae = lossy()
    report = check(vae.model, vae.guide, torch.full((2, *SHAPE), 0.5, dtype=torch.float64))
    assert not report.ok and "dynamic binarisation" in str(report)


@pytest.mark.parametrize("layers", [pixel_cnn_layers(6), pixel_cnn_window(7, 4)], ids=["stack", "window"])
def test_64_images_of_28x28_are_drawn_in_under_20_seconds(layers):
    network = PixelCNN((1, 28, 28), 12, layers, context_channels=4, num_pointwise=4)
    p = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)(torch.randn(64, 4, 28, 28))
    started = time.process_time()  # of this process alone, on one thread
    assert p.sample().shape == (64, 1, 28, 28)
    assert time.process_time() - started < 20


def test_the_laplace_guide_linearises_the_conditionals_and_the_flow():
    """Gauss-Newton by hand: J_epsᵀ J_eps of the flow plus Jᵀ diag(p (1 - p)) J of the teacher-forced logits."""
    vae, x = lossy(), images(2)
    vae.prior.scale.fill_(0.5)
    guide = AmortizedLaplace(vae.model, start=Chain(ConvEncoder(SHAPE, [2], 8), nn.Linear(8, 3)).double(), steps=2)
    assert check(vae.model, guide, x).ok
    z = guide.posterior(x).mean.detach()
    joint = Joint(vae.model, guide.latents(x), Given((x,), {}))
    with torch.no_grad():
        found = Lineariser(joint)(z)
    net = vae.likelihood.network
    for i in range(2):
        by_z = torch.autograd.functional.jacobian(lambda z, i=i: net(2 * x[i] - 1, vae.decoder(z)).flatten(), z[i])
        by_flow = torch.autograd.functional.jacobian(lambda z: vae.prior().whiten(z)[0], z[i])
        probs = torch.sigmoid(net(2 * x[i] - 1, vae.decoder(z[i]))).flatten().detach()
        wanted = 4 * by_flow.T @ by_flow + by_z.T @ torch.diag(probs * (1 - probs)) @ by_z
        torch.testing.assert_close(found.precision[i], wanted, rtol=1e-9, atol=1e-9)
        point = z[i].clone().requires_grad_()
        log_joint = vae.prior().log_prob(point) + vae.likelihood(vae.decoder(point)).log_prob(x[i])
        torch.testing.assert_close(found.score[i], torch.autograd.grad(log_joint, point)[0], rtol=1e-9, atol=1e-9)


def test_the_laplace_guide_refuses_outputs_without_a_fisher_information():
    output = DiscretizedLogisticMixtureLikelihood(2, event_dim=3)
    both = AutoregressiveLikelihood(output, PixelCNN(SHAPE, 6, pixel_cnn_layers(2), 6, context_channels=2))
    encoder = Chain(ConvEncoder(SHAPE, [2], 8), NormalHead(8, 3))
    vae = LossyVAE(encoder, ConvDecoder(3, [3], (2, 4, 4)), both, 3, prior=StandardNormal(3))
    guide = AmortizedLaplace(vae.model, start=Chain(ConvEncoder(SHAPE, [2], 8), nn.Linear(8, 3)), steps=1)
    with pytest.raises(NotImplementedError, match="observed site 'x', a DiscretizedLogisticMixture"):
        guide.posterior(torch.rand(2, *SHAPE).mul(255).round() / 255)


def test_per_pixel_log_likelihoods_add_up_and_there_is_no_mean():
    vae, x = lossy(), images()
    tree = to_datatree(vae.model, vae.guide, x, pointwise=True)
    whole = to_datatree(vae.model, vae.guide, x)
    each = torch.tensor(tree["log_likelihood"]["x"].values)
    assert each.shape[2:] == (6, *SHAPE)
    torch.testing.assert_close(each.sum((-1, -2, -3)), torch.tensor(whole["log_likelihood"]["x"].values))
    with pytest.raises(ValueError, match="no mean to reconstruct; use posterior_predictive"):
        reconstruct(vae.model, vae.guide, x)
