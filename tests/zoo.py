"""One tiny instance of every model, guide and bound; the suite in test_zoo.py crosses them.

A new piece is one row: a model is a function that returns ``Built``, a guide a function of it, a bound a constructor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vaes.guides import (
    AmortizedHouseholder,
    AmortizedIAF,
    AmortizedLaplace,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    SemiAmortized,
)
from pyro_vaes.infer import (
    MMD_ELBO,
    Adversarial_ELBO,
    AggregatePosterior_ELBO,
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    MutualPosterior_ELBO,
    RecursiveMixture_ELBO,
    StickingTheLanding_ELBO,
    StratifiedMixture_ELBO,
)
from pyro_vaes.models import (
    M2,
    VAE,
    ConditionalVAE,
    GaussianMixtureDGM,
    HierarchicalVAE,
    LadderClusteringVAE,
    LadderVAE,
    LossyVAE,
)
from pyro_vaes.nn import (
    MLP,
    AutoregressiveLikelihood,
    AutoregressivePrior,
    BernoulliLikelihood,
    Chain,
    Concatenate,
    ConvDecoder,
    ConvEncoder,
    GaussianLikelihood,
    HouseholderHead,
    IAFHead,
    LaplaceLikelihood,
    MixturePrior,
    MultivariateNormalHead,
    NormalHead,
    OneHot,
    PixelCNN,
    WeightHead,
    mlp_ladder,
    pixel_cnn_layers,
    small_ladder,
)

B, D = 6, 16


@dataclass
class Built:
    """A model, the arguments of one batch, its own guide if it has one, and a trunk ``args -> 8 features``."""

    model: Callable
    args: tuple[Tensor, ...]
    guide: Callable | None
    trunk: Callable[[], nn.Module]
    latent_numel: int
    owner: nn.Module


def _binary() -> Tensor:
    return torch.bernoulli(torch.full((B, D), 0.4))


def linear_vae() -> Built:
    encoder, likelihood = NormalHead(D, 3, scale=1.0, learn_scale=True), GaussianLikelihood(scale=0.5, learn_scale=True)
    vae = VAE(encoder, MLP(3, [], D), likelihood, 3)
    return Built(vae.model, (torch.randn(B, D),), vae.guide, lambda: MLP(D, [8], 8), 3, vae)


def mlp_vae() -> Built:
    vae = VAE(Chain(MLP(D, [8], 8), NormalHead(8, 3)), MLP(3, [8], D), BernoulliLikelihood(), 3)
    return Built(vae.model, (_binary(),), vae.guide, lambda: MLP(D, [8], 8), 3, vae)


def conv_vae() -> Built:
    shape = (1, 5, 6)
    encoder = Chain(ConvEncoder(shape, [2, 3], 8, num_residual=1), NormalHead(8, 3))
    vae = VAE(encoder, ConvDecoder(3, [3, 2], shape), BernoulliLikelihood(event_dim=3), 3)
    x = torch.bernoulli(torch.full((B, *shape), 0.4))
    return Built(vae.model, (x,), vae.guide, lambda: ConvEncoder(shape, [2], 8), 3, vae)


def conditional_vae() -> Built:
    encoder = Chain(MLP(D + 4, [8], 8), NormalHead(8, 3))
    prior = Chain(MLP(4, [8], 8), NormalHead(8, 3))
    cvae = ConditionalVAE(encoder, MLP(3 + 4, [8], D), BernoulliLikelihood(), 3, prior=prior, embedding=OneHot(4))
    args = (_binary(), torch.arange(B) % 4)
    return Built(cvae.model, args, cvae.guide, lambda: _Pairwise(MLP(D + 4, [8], 8)), 3, cvae)


class _Pairwise(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.embedding = net, OneHot(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x, self.embedding(y))


def _hierarchical(*, skip: bool, top_down: bool) -> Built:
    dims = [4, 3, 2]
    above = [sum(dims[i + 1 :]) if skip else dims[i + 1] for i in range(2)]
    priors = [Chain(MLP(a, [8], 8), NormalHead(8, d)) for a, d in zip(above, dims, strict=False)]
    if top_down:
        widths = [D + a for a in above] + [D]
    else:
        widths = [D] + [D + sum(dims[: i + 1]) if skip else dims[i] for i in range(2)]
    encoders = [Chain(MLP(w, [8], 8), NormalHead(8, d)) for w, d in zip(widths, dims, strict=True)]
    decoder = MLP(sum(dims) if skip else dims[0], [8], D)
    hvae = HierarchicalVAE(encoders, decoder, BernoulliLikelihood(), dims, priors=priors, skip=skip, top_down=top_down)
    return Built(hvae.model, (_binary(),), hvae.guide, lambda: MLP(D, [8], 8), sum(dims), hvae)


def ladder_mlp() -> Built:
    dims = [3, 2]
    ladder = LadderVAE(*mlp_ladder(D, dims, width=8, merge=Concatenate), LaplaceLikelihood(0.5), dims)
    return Built(ladder.model, (torch.rand(B, D),), ladder.guide, lambda: MLP(D, [8], 8), sum(dims), ladder)


def ladder_conv() -> Built:
    shape, dims = (1, 5, 6), [2, 1, 2]
    networks = small_ladder(shape, dims, channels=(2, 3), width=8, output=nn.Identity, batch_norm=False)
    ladder = LadderVAE(*networks, BernoulliLikelihood(event_dim=3), dims)
    x = torch.bernoulli(torch.full((B, *shape), 0.4))
    return Built(ladder.model, (x,), ladder.guide, lambda: ConvEncoder(shape, [2], 8), sum(dims), ladder)


class _WithClusters(nn.Module):
    """A rung for which features and one-hot clusters are concatenated."""

    def __init__(self, width: int, num_clusters: int, dim: int) -> None:
        super().__init__()
        self.net = Chain(MLP(width + num_clusters, [8], 8), NormalHead(8, dim))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.net(h, y)


def _ladder_clustering(form: str) -> Built:
    """Form A with the mixture as prior or with enumerated clusters, B at the optimum or with classifiers, or C."""
    dims, clusters, widths = [3, 2], [4, 3], [D, 8]
    networks = mlp_ladder(D, dims, width=8, activation=nn.LeakyReLU)
    classifiers = None
    if form in ("B_classifier", "C"):
        classifiers = [MLP(w, [8], k) for w, k in zip(widths, clusters, strict=True)]
    if form == "C":
        rungs = [_WithClusters(*sizes) for sizes in zip(widths, clusters, dims, strict=True)]
        networks = networks._replace(rungs=rungs)
    priors = [MixturePrior(dims[0], clusters[0]), MixturePrior(dims[1], clusters[1], full_covariance=True)]
    for prior in priors:  # close together, so that their log-density is concave and a Laplace guide does not warn
        prior.place(0.3 * prior.loc, 1.0)
    vlac = LadderClusteringVAE(
        *networks,
        BernoulliLikelihood(),
        dims,
        priors=priors,
        classifiers=classifiers,
        clusters_to_rungs=form == "C",
    )
    model = vlac.model if form == "A" else vlac.cluster_model
    guide = vlac.guide if form.startswith("A") else vlac.cluster_guide
    return Built(model, (_binary(),), guide, lambda: MLP(D, [8], 8), sum(dims), vlac)


def gaussian_mixture_dgm() -> Built:
    prior = MixturePrior(3, 4, learn_weights=False)
    gmdgm = GaussianMixtureDGM(
        MLP(D, [8], 4), _WithClusters(D, 4, 3), MLP(3, [8], D), BernoulliLikelihood(), prior, label_weight=1.1
    )
    args = _binary(), torch.tensor([0, -1, 3, -1, -1, 2])
    return Built(gmdgm.model, args, gmdgm.guide, lambda: MLP(D, [8], 8), 3, gmdgm)


def m2() -> Built:
    model = M2(MLP(D, [8], 4), _WithClusters(D, 4, 3), MLP(3 + 4, [8], D), BernoulliLikelihood(), 3, 4)
    return Built(model.model, (_binary(),), model.guide, lambda: MLP(D, [8], 8), 3, model)


def lossy_vae() -> Built:
    shape = (1, 4, 4)
    encoder = Chain(ConvEncoder(shape, [2], 8), NormalHead(8, 3))
    network = PixelCNN(shape, 4, pixel_cnn_layers(2), context_channels=2)
    likelihood = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)
    prior = AutoregressivePrior(3, [8], steps=2)
    lossy = LossyVAE(encoder, ConvDecoder(3, [3], (2, 4, 4)), likelihood, 3, prior=prior)
    x = torch.bernoulli(torch.full((B, *shape), 0.4))
    return Built(lossy.model, (x,), lossy.guide, lambda: ConvEncoder(shape, [2], 8), 3, lossy)


def user_poisson() -> Built:
    """A user's program: counts with two latent sites, one of them a scalar, and a plain module in a closure."""
    decoder = MLP(2, [8], D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("cells", len(x)):
            size = pyro.sample("size", dist.Normal(x.new_zeros(()), 0.3))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("counts", dist.Poisson((decoder(z) + size.unsqueeze(-1)).clamp(-5, 5).exp()).to_event(1), obs=x)

    x = torch.poisson(torch.full((B, D), 2.0))
    return Built(model, (x,), None, lambda: MLP(D, [8], 8), 3, decoder)


def user_constrained() -> Built:
    """A user's program with constrained latents: a positive rate and a point on the simplex."""
    decoder = MLP(4, [8], D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(3.0), x.new_tensor(1.0)))
            share = pyro.sample("share", dist.Dirichlet(x.new_ones(3)))
            z = torch.cat([rate.unsqueeze(-1).expand((*share.shape[:-1], 1)), share], -1)
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return Built(model, (torch.randn(B, D),), None, lambda: MLP(D, [8], 8), 3, decoder)


MODELS: dict[str, Callable[[], Built]] = {
    "linear_vae": linear_vae,
    "mlp_vae": mlp_vae,
    "conv_vae": conv_vae,
    "conditional_vae": conditional_vae,
    "hierarchical_markovian_bottom_up": lambda: _hierarchical(skip=False, top_down=False),
    "hierarchical_markovian_top_down": lambda: _hierarchical(skip=False, top_down=True),
    "hierarchical_skip_bottom_up": lambda: _hierarchical(skip=True, top_down=False),
    "hierarchical_skip_top_down": lambda: _hierarchical(skip=True, top_down=True),
    "ladder_mlp": ladder_mlp,
    "ladder_conv": ladder_conv,
    "ladder_clustering": lambda: _ladder_clustering("A"),
    "ladder_clustering_enumerated": lambda: _ladder_clustering("A_enumerated"),
    "ladder_clustering_optimal_clusters": lambda: _ladder_clustering("B"),
    "ladder_clustering_amortized_clusters": lambda: _ladder_clustering("B_classifier"),
    "ladder_clustering_joint_clusters": lambda: _ladder_clustering("C"),
    "gaussian_mixture_dgm": gaussian_mixture_dgm,
    "m2": m2,
    "lossy_vae": lossy_vae,
    "user_poisson": user_poisson,
    "user_constrained": user_constrained,
}


def mixture(b: Built) -> AmortizedMixture:
    """A diagonal and a full-covariance component."""
    components = [Chain(b.trunk(), head(8, b.latent_numel)) for head in (NormalHead, MultivariateNormalHead)]
    return AmortizedMixture(b.model, components, [Chain(b.trunk(), WeightHead(8))])


GUIDES: dict[str, Callable[[Built], Callable | None]] = {
    "own": lambda b: b.guide,
    "normal": lambda b: AmortizedNormal(b.model, Chain(b.trunk(), NormalHead(8, b.latent_numel))),
    "multivariate_normal": lambda b: AmortizedMultivariateNormal(
        b.model, Chain(b.trunk(), MultivariateNormalHead(8, b.latent_numel))
    ),
    "laplace": lambda b: AmortizedLaplace(b.model, start=Chain(b.trunk(), nn.Linear(8, b.latent_numel)), steps=2),
    "laplace_trained_start": lambda b: AmortizedLaplace(
        b.model, start=Chain(b.trunk(), nn.Linear(8, b.latent_numel)), steps=1, start_weight=1.0
    ),
    "mixture": mixture,
    "householder": lambda b: AmortizedHouseholder(b.model, Chain(b.trunk(), HouseholderHead(8, b.latent_numel))),
    "iaf": lambda b: AmortizedIAF(b.model, Chain(b.trunk(), IAFHead(8, b.latent_numel, flows=2, hidden=[12]))),
    "semi_amortized": lambda b: SemiAmortized(
        AmortizedNormal(b.model, Chain(b.trunk(), NormalHead(8, b.latent_numel))), steps=2
    ),
}


class Spread(nn.Module):
    """A discriminator of data with any shape: a score of their mean and mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.score(torch.stack([x.mean(1), x.square().mean(1)], 1))


BOUNDS: dict[str, Callable] = {
    "trace": Trace_ELBO,
    "trace_vectorized": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean_field": TraceMeanField_ELBO,
    "enum": lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
    "importance_weighted": lambda: ImportanceWeighted_ELBO(3),
    "free_bits": lambda: FreeBits_ELBO(0.05),
    "mmd": lambda: MMD_ELBO(5.0),
    "sticking_the_landing": StickingTheLanding_ELBO,
    "dreg": lambda: DReG_ELBO(3),
    "stratified_mixture": StratifiedMixture_ELBO,
    "recursive_mixture": lambda: RecursiveMixture_ELBO(num_kl_samples=2),
    "aggregate_posterior": lambda: AggregatePosterior_ELBO("mixture"),
    "adversarial": lambda: Adversarial_ELBO(Trace_ELBO(), Spread()),
    "mutual_posterior": lambda: MutualPosterior_ELBO(eta=1.0, gamma=0.1),
}
OF_MIXTURES = {"stratified_mixture", "recursive_mixture"}
WITH_CLUSTERS = {
    "ladder_clustering_enumerated",
    "ladder_clustering_optimal_clusters",
    "ladder_clustering_amortized_clusters",
    "ladder_clustering_joint_clusters",
    "gaussian_mixture_dgm",
    "m2",
}
REPARAMETERISED = {"mean_field", "importance_weighted", "free_bits", "mmd", "sticking_the_landing", "dreg"}


def undefined(model: str, guide: str, bound: str) -> bool:
    """Combinations that must be refused.

    Analytic KLs with a guide that runs against the model's order, or whose density is meant to cancel
    draw by draw; bounds without score functions with a guide that is
    not reparameterised; the bounds of mixtures with other guides; divergences between posteriors where the guide draws
    a site given another; aggregates of posteriors that are not normal, or under priors that are not, or that depend on
    other latents; discriminators of draws that are not reparameterised, or of observations without a mean. Clusters
    that are to be enumerated have no guide but the model's own, and no bound that does not enumerate. A mixture that
    learns has no draws for the discrepancy.
    """
    if model in WITH_CLUSTERS:
        return guide != "own" or bound != "enum"
    if model == "ladder_clustering" and bound == "mmd":
        return True
    if bound == "mutual_posterior":
        return guide == "own" and model.startswith("hierarchical")
    if bound == "adversarial":
        return guide == "mixture" or model == "lossy_vae"
    if bound == "aggregate_posterior":
        return guide in ("mixture", "iaf") or model.startswith(
            ("hierarchical", "lossy", "user_constrained", "ladder_clustering")
        )
    if guide == "mixture":
        return bound in REPARAMETERISED
    if bound in OF_MIXTURES:
        return True
    return bound == "mean_field" and (guide.startswith("laplace") or (guide == "own" and model.endswith("bottom_up")))


CASES = [
    (m, g, b)
    for m in MODELS
    for g in GUIDES
    for b in BOUNDS
    if not (g == "own" and m.startswith("user_"))
    and (m not in WITH_CLUSTERS or g == "own" or b == "enum")  # refused alike for every bound
]
PAIRS = sorted({(m, g) for m, g, _ in CASES if not undefined(m, g, "trace")})
