"""Models: sites and shapes, sampling by the same program, errors, and conditional use."""

import functools

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO

from pyro_vaes.data import assemble, complete
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import (
    MLP,
    BernoulliLikelihood,
    Chain,
    GaussianLikelihood,
    NormalHead,
    OneHot,
    SigmoidNormalHead,
    StandardNormal,
)


def make_vae(**options):
    encoder = Chain(MLP(16, [8], 8), NormalHead(8, 3))
    return VAE(encoder, MLP(3, [8], 16), BernoulliLikelihood(), 3, **options)


def test_vae_sites_and_plates():
    vae, x = make_vae(), torch.bernoulli(torch.rand(5, 16))
    trace = poutine.trace(vae.model).get_trace(x)
    assert trace.nodes["z"]["fn"].batch_shape == (5,) and trace.nodes["z"]["fn"].event_shape == (3,)
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], x)
    assert [f.name for f in trace.nodes["x"]["cond_indep_stack"]] == ["data"]


def test_the_same_program_samples_new_data():
    vae = make_vae()
    assert vae.model(size=7).shape == (7, 16)
    assert Predictive(vae.model, num_samples=9)()["x"].shape == (9, 1, 16)
    assert set(vae.model(size=7).unique().tolist()) <= {0.0, 1.0}


def test_wrong_widths_are_named():
    vae = make_vae()
    with pytest.raises(ValueError, match=r"shape \(4, 4\), but the decoder returns \(16,\): flatten"):
        vae.model(torch.zeros(5, 4, 4))
    with pytest.raises(ValueError, match="as wide as the data"):
        vae.model(torch.zeros(5, 15))


class Halves(torch.nn.Module):
    """A pair (loc, scale) with this many entries each."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.net = torch.nn.Linear(in_features, 2 * out_features)

    def forward(self, *inputs):
        loc, raw = self.net(torch.cat(inputs, -1)).chunk(2, -1)
        return loc, raw.exp()


@pytest.mark.parametrize(
    ("encoder", "cure"),
    [
        (Chain(MLP(16, [8], 8), NormalHead(8, 3)), r"give the head 4 outputs, NormalHead\(8, 4\)\.$"),
        (torch.nn.Sequential(SigmoidNormalHead(16, 3)), r"the head 4 outputs, SigmoidNormalHead\(16, 4\)\.$"),
        (Halves(16, 3), r"let it return vectors of length 4\.$"),
    ],
)
def test_encoders_of_another_length_than_latent_dim(encoder, cure):
    vae = VAE(encoder, MLP(4, [8], 16), BernoulliLikelihood(), latent_dim=4)
    said = r"^The encoder returns a distribution over vectors of length 3, but latent_dim is 4: "
    with pytest.raises(ValueError, match=said + ".*" + cure):
        vae.posterior(torch.zeros(5, 16))


def test_conditional_networks_of_another_length_than_latent_dim():
    def make(encoder_dim, prior_dim):
        encoder, prior = Chain(MLP(16 + 3, [8], 8), NormalHead(8, encoder_dim)), NormalHead(3, prior_dim)
        return ConditionalVAE(encoder, MLP(4 + 3, [8], 16), BernoulliLikelihood(), 4, prior=prior)

    given = torch.zeros(5, 16), torch.zeros(5, 3)
    with pytest.raises(
        ValueError, match=r"^The encoder returns .* length 3, but latent_dim is 4: .*NormalHead\(8, 4\)"
    ):
        make(3, 4).guide(*given)
    with pytest.raises(
        ValueError, match=r"^The prior network returns .* length 5, but latent_dim is 4: .*NormalHead\(3"
    ):
        make(4, 5).model(*given)
    make(4, 4).model(*given)


def test_levels_of_another_length_than_latent_dims():
    def make(first, second, prior):
        encoders = [NormalHead(16, first), NormalHead(4, second)]
        return HierarchicalVAE(encoders, MLP(4, [8], 16), BernoulliLikelihood(), [4, 2], priors=[NormalHead(2, prior)])

    x = torch.zeros(5, 16)
    with pytest.raises(ValueError, match=r"^The encoder of z_1 returns .* length 3, but latent_dims\[0\] is 4: "):
        make(3, 2, 4).guide(x)
    with pytest.raises(ValueError, match=r"^The encoder of z_2 returns .* length 3, but latent_dims\[1\] is 2: "):
        make(4, 3, 4).guide(x)
    with pytest.raises(
        ValueError, match=r"^The prior of z_1 returns .* length 3, but .*0\] is 4: .*NormalHead\(2, 4\)"
    ):
        make(4, 2, 3).model(x)
    make(4, 2, 4).model(x)


def test_prior_and_encoder_pairs_are_free():
    class Shifted(torch.nn.Module):
        def forward(self):
            return pyro.distributions.Normal(torch.full((3,), 100.0), 0.1).to_event(1)

    class TwoTensors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(16, 6)

        def forward(self, x):
            loc, raw = self.net(x).chunk(2, -1)
            return loc, raw.exp()

    vae = VAE(TwoTensors(), MLP(3, [8], 16), BernoulliLikelihood(), 3, prior=Shifted())
    x = torch.bernoulli(torch.rand(5, 16))
    assert poutine.trace(vae.model).get_trace(x).nodes["z"]["value"].min() > 90
    assert vae.posterior(x).event_shape == (3,)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(vae.model, vae.guide, x)))


def test_mean_field_bound_equals_the_textbook_formula():
    """-ELBO = E log-loss + sum_i 1/2 (s² + m² - 1 - log s²): by hand, at the same draws."""
    vae, x = make_vae().double(), torch.bernoulli(torch.rand(50, 16, dtype=torch.float64))
    pyro.set_rng_seed(5)
    value = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(5)
    q = vae.posterior(x)
    z = q.rsample()
    m, s = q.base_dist.loc, q.base_dist.scale
    kl = 0.5 * (s**2 + m**2 - 1 - 2 * s.log()).sum()
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="sum")
    assert abs(value - (cross_entropy + kl).item()) < 1e-9


@pytest.mark.parametrize("learned_prior", [False, True])
def test_conditional_vae_learns_what_depends_on_the_label(learned_prior):
    """Class-conditional samples: each class has its own constant image, which the samples must show."""
    centres = torch.tensor([[-3.0, -3.0], [0.0, 3.0], [3.0, 0.0]])
    y = torch.arange(300) % 3
    x = centres[y] + 0.1 * torch.randn(300, 2)
    prior = Chain(MLP(3, [16], 16), NormalHead(16, 2)) if learned_prior else None
    cvae = ConditionalVAE(
        Chain(MLP(5, [16], 16), NormalHead(16, 2)),
        MLP(5, [16], 2),
        GaussianLikelihood(scale=0.5, learn_scale=True),
        2,
        prior=prior,
        embedding=OneHot(3),
    )
    optim = functools.partial(torch.optim.Adam, lr=1e-2)
    fit(cvae.model, cvae.guide, (x, y), epochs=60, batch_size=50, seed=0, progress=False, optim=optim)
    labels = torch.arange(3).repeat_interleave(200)
    with torch.no_grad():
        means = cvae.model(None, labels).reshape(3, 200, 2).mean(1)
    assert (means - centres).abs().max() < 0.4  # samples have standard deviation ~0.1-0.5: 0.4 is over 10 errors


def test_conditional_vae_completes_images():
    images = torch.bernoulli(torch.rand(6, 1, 8, 8))
    target, covariate = complete(images)
    cvae = ConditionalVAE(Chain(MLP(64, [8], 8), NormalHead(8, 2)), MLP(2 + 16, [8], 48), BernoulliLikelihood(), 2)
    assert Trace_ELBO().loss(cvae.model, cvae.guide, target, covariate) > 0
    completed = assemble(cvae.model(None, covariate), covariate, (1, 8, 8))
    assert torch.equal(completed[..., 4:, :4], images[..., 4:, :4])


def test_conditional_vae_wants_one_covariate_for_each_datum():
    cvae = ConditionalVAE(Chain(MLP(6, [4], 4), NormalHead(4, 2)), MLP(4, [4], 4), BernoulliLikelihood(), 2)
    with pytest.raises(ValueError, match="3 rows but the covariate has 2"):
        cvae.model(torch.zeros(3, 4), torch.zeros(2, 2))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_hierarchical_vae_has_any_number_of_levels(skip, top_down, levels):
    dims = list(range(levels + 1, 1, -1))
    above = [sum(dims[i + 1 :]) if skip else dims[i + 1] for i in range(levels - 1)]
    if top_down:
        widths = [16 + a for a in above] + [16]
    else:
        widths = [16] + [16 + sum(dims[: i + 1]) if skip else dims[i] for i in range(levels - 1)]
    hvae = HierarchicalVAE(
        [Chain(MLP(w, [4], 4), NormalHead(4, d)) for w, d in zip(widths, dims, strict=True)],
        MLP(sum(dims) if skip else dims[0], [4], 16),
        BernoulliLikelihood(),
        dims,
        priors=[Chain(MLP(a, [4], 4), NormalHead(4, d)) for a, d in zip(above, dims, strict=False)],
        skip=skip,
        top_down=top_down,
        prior_scale=2.0,
    )
    x = torch.bernoulli(torch.rand(5, 16))
    guide = poutine.trace(hvae.guide).get_trace(x)
    order = [n for n in guide.nodes if n.startswith("z_")]
    names = [f"z_{i}" for i in range(1, levels + 1)]
    assert order == (names[::-1] if top_down else names)
    model = poutine.trace(poutine.replay(hvae.model, trace=guide)).get_trace(x)
    assert [n for n in model.nodes if n.startswith("z_")] == names[::-1]
    assert model.nodes[f"z_{levels}"]["fn"].variance.unique().tolist() == [4.0]
    assert hvae.model(size=3).shape == (3, 16)


def test_hierarchical_vae_counts_its_parts():
    with pytest.raises(ValueError, match="2 encoders and 1 priors"):
        HierarchicalVAE([NormalHead(4, 2)], MLP(2, [], 4), BernoulliLikelihood(), [2, 2], priors=[])


def test_prior_scales():
    """N(0, scale² I) for each model, drawn from, and not where a prior is given."""
    decoder, likelihood = MLP(2, [], 6), GaussianLikelihood(0.5)
    vae = VAE(NormalHead(6, 2), decoder, likelihood, 2, prior_scale=0.3)
    cvae = ConditionalVAE(NormalHead(9, 2), MLP(5, [], 6), likelihood, 2, prior_scale=0.3)
    deep = HierarchicalVAE(
        [NormalHead(6, 2), NormalHead(2, 3)], decoder, likelihood, [2, 3], priors=[NormalHead(3, 2)], prior_scale=0.3
    )
    x, c = torch.randn(7, 6), torch.randn(7, 3)
    for model, args, site in ((vae.model, (x,), "z"), (cvae.model, (x, c), "z"), (deep.model, (x,), "z_2")):
        fn = poutine.trace(model).get_trace(*args).nodes[site]["fn"]
        assert (fn.base_dist.scale == torch.tensor(0.3)).all() and not fn.base_dist.loc.any(), site
    given = VAE(NormalHead(6, 2), decoder, likelihood, 2, prior=StandardNormal(2, 0.7), prior_scale=0.3)
    assert (given.prior().base_dist.scale == torch.tensor(0.7)).all()
