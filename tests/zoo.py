"""One tiny instance of every model, guide and bound; the suite in test_zoo.py crosses them.

A new piece is one row: a model is a function that returns ``Built``, a guide a function
of it, a bound a constructor. A row states facts about its piece where they differ from
the usual; which combinations must be refused follows from the facts alone.

The tests run a covering set: each pair (model, guide), (model, bound), (guide, bound) that
is defined somewhere, and each distinct refusal. ``PYRO_VAES_ZOO=full``, which
``make test-full`` sets, runs every combination.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vaes.guides import (
    Amortized,
    AmortizedHouseholder,
    AmortizedIAF,
    AmortizedLaplace,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    ComposedGuide,
    SemiAmortized,
    Site,
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


@dataclass(frozen=True)
class Draws:
    """How a guide draws the latents."""

    reparameterised: bool = True
    normal: bool = True  # the posterior of unconstrained latents is one normal
    joint: bool = False  # several sites are parts of one draw
    mixture: bool = False  # that draw comes from a RecursiveMixture
    cancels: bool = False  # log q(z) - log p(x, z) is meant to cancel at each draw
    given_others: bool = False  # a site is drawn given another one
    bottom_up: bool = False  # and so is one on which the prior of that other depends
    discrete: bool = False  # it may leave discrete sites to a bound that sums over them


CHAINED = Draws(given_others=True)
BOTTOM_UP = Draws(given_others=True, bottom_up=True)
CLUSTERS = Draws(discrete=True)


@dataclass(frozen=True)
class Model:
    """A row of models. Calling it builds a tiny instance."""

    build: Callable[[], Built]
    own_guide: Draws | None = Draws()  # None where the model comes without a guide
    clusters: bool = False  # has a discrete latent, which a bound must sum out
    clusters_in_guide: bool = True  # its own guide has that latent as well
    independent_priors: bool = True  # no prior depends on another latent
    normal_priors: bool = True
    real_latents: bool = True  # no latent has a constrained support
    prior_gradients: bool = True  # a prior that learns has reparameterised draws
    observation_mean: bool = True  # the observation has a mean in closed form

    def __call__(self) -> Built:
        return self.build()


@dataclass(frozen=True)
class Guide:
    """A row of guides. Calling it builds one for a model; "own" is the model's."""

    build: Callable[[Built], Callable | None]
    draws: Draws | None = Draws()  # None where the model's row says it

    def __call__(self, built: Built) -> Callable | None:
        return self.build(built)


@dataclass(frozen=True)
class Bound:
    """A row of bounds: what they need of a pair. Calling it builds one."""

    build: Callable
    reparameterised: bool = False  # has no score function: needs reparameterised draws
    mixture: bool = False  # needs a mixture as the guide's one draw
    analytic_kl: bool = False  # takes KLs in closed form, site by site
    sums_out: bool = False  # sums over discrete latents
    draws_prior: bool = False  # learns a prior by draws from it
    own_posteriors: bool = False  # needs a posterior given the datum alone at each site
    normal_posteriors: bool = False  # all of which are normal, under one normal prior
    observation_mean: bool = False  # needs the observation's mean

    def __call__(self) -> ELBO:
        return self.build()


MODELS: dict[str, Model] = {
    "linear_vae": Model(linear_vae),
    "mlp_vae": Model(mlp_vae),
    "conv_vae": Model(conv_vae),
    "conditional_vae": Model(conditional_vae),
    "hierarchical_markovian_bottom_up": Model(
        lambda: _hierarchical(skip=False, top_down=False),
        own_guide=BOTTOM_UP,
        independent_priors=False,
    ),
    "hierarchical_markovian_top_down": Model(
        lambda: _hierarchical(skip=False, top_down=True),
        own_guide=CHAINED,
        independent_priors=False,
    ),
    "hierarchical_skip_bottom_up": Model(
        lambda: _hierarchical(skip=True, top_down=False),
        own_guide=BOTTOM_UP,
        independent_priors=False,
    ),
    "hierarchical_skip_top_down": Model(
        lambda: _hierarchical(skip=True, top_down=True),
        own_guide=CHAINED,
        independent_priors=False,
    ),
    "ladder_mlp": Model(ladder_mlp),
    "ladder_conv": Model(ladder_conv),
    "ladder_clustering": Model(
        lambda: _ladder_clustering("A"),
        normal_priors=False,
        prior_gradients=False,
    ),
    "ladder_clustering_enumerated": Model(
        lambda: _ladder_clustering("A_enumerated"),
        own_guide=CLUSTERS,
        clusters=True,
        clusters_in_guide=False,
    ),
    "ladder_clustering_optimal_clusters": Model(
        lambda: _ladder_clustering("B"),
        own_guide=CLUSTERS,
        clusters=True,
    ),
    "ladder_clustering_amortized_clusters": Model(
        lambda: _ladder_clustering("B_classifier"),
        own_guide=CLUSTERS,
        clusters=True,
    ),
    "ladder_clustering_joint_clusters": Model(
        lambda: _ladder_clustering("C"),
        own_guide=CLUSTERS,
        clusters=True,
    ),
    "gaussian_mixture_dgm": Model(
        gaussian_mixture_dgm,
        own_guide=CLUSTERS,
        clusters=True,
    ),
    "m2": Model(m2, own_guide=CLUSTERS, clusters=True),
    "lossy_vae": Model(lossy_vae, normal_priors=False, observation_mean=False),
    "user_poisson": Model(user_poisson, own_guide=None),
    "user_constrained": Model(
        user_constrained,
        own_guide=None,
        normal_priors=False,
        real_latents=False,
    ),
}


def headed(b: Built, head: Callable[..., nn.Module], **options: object) -> Chain:
    """A network from the batch to what a head makes of all latents."""
    return Chain(b.trunk(), head(8, b.latent_numel, **options))


def mixture(b: Built) -> AmortizedMixture:
    """A diagonal and a full-covariance component."""
    components = [headed(b, head) for head in (NormalHead, MultivariateNormalHead)]
    return AmortizedMixture(b.model, components, [Chain(b.trunk(), WeightHead(8))])


def laplace(b: Built, **options: float) -> AmortizedLaplace:
    return AmortizedLaplace(b.model, start=headed(b, nn.Linear), **options)


class PerSite(nn.Module):
    """A normal for any site, from as many columns of one head as it needs."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, NormalHead(8, width)

    def forward(self, *args: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        normal = self.head(self.trunk(*args)).base_dist
        shape = (*normal.loc.shape[:-1], *site.reals.unconstrained_shape)
        parts = [part[..., : site.reals.numel].reshape(shape) for part in (normal.loc, normal.scale)]
        return parts[0], parts[1]


def composed(b: Built) -> ComposedGuide:
    return ComposedGuide(b.model, {"*": Amortized(PerSite(b.trunk(), b.latent_numel))})


GUIDES: dict[str, Guide] = {
    "own": Guide(lambda b: b.guide, draws=None),
    "normal": Guide(lambda b: AmortizedNormal(b.model, headed(b, NormalHead))),
    "composed": Guide(composed),
    "multivariate_normal": Guide(
        lambda b: AmortizedMultivariateNormal(b.model, headed(b, MultivariateNormalHead)),
        Draws(joint=True),
    ),
    "laplace": Guide(lambda b: laplace(b, steps=2), Draws(joint=True, cancels=True)),
    "laplace_trained_start": Guide(
        lambda b: laplace(b, steps=1, start_weight=1.0),
        Draws(joint=True, cancels=True),
    ),
    "mixture": Guide(
        mixture,
        Draws(joint=True, mixture=True, normal=False, reparameterised=False),
    ),
    "householder": Guide(
        lambda b: AmortizedHouseholder(b.model, headed(b, HouseholderHead)),
        Draws(joint=True),
    ),
    "iaf": Guide(
        lambda b: AmortizedIAF(b.model, headed(b, IAFHead, flows=2, hidden=[12])),
        Draws(joint=True, normal=False),
    ),
    "semi_amortized": Guide(
        lambda b: SemiAmortized(AmortizedNormal(b.model, headed(b, NormalHead)), steps=2),
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


BOUNDS: dict[str, Bound] = {
    "trace": Bound(Trace_ELBO),
    "trace_vectorized": Bound(
        lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    ),
    "mean_field": Bound(TraceMeanField_ELBO, reparameterised=True, analytic_kl=True),
    "enum": Bound(
        lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
        sums_out=True,
    ),
    "importance_weighted": Bound(
        lambda: ImportanceWeighted_ELBO(3),
        reparameterised=True,
    ),
    "free_bits": Bound(lambda: FreeBits_ELBO(0.05), reparameterised=True),
    "mmd": Bound(lambda: MMD_ELBO(5.0), reparameterised=True, draws_prior=True),
    "sticking_the_landing": Bound(StickingTheLanding_ELBO, reparameterised=True),
    "dreg": Bound(lambda: DReG_ELBO(3), reparameterised=True),
    "stratified_mixture": Bound(StratifiedMixture_ELBO, mixture=True),
    "recursive_mixture": Bound(
        lambda: RecursiveMixture_ELBO(num_kl_samples=2),
        mixture=True,
    ),
    "aggregate_posterior": Bound(
        lambda: AggregatePosterior_ELBO("mixture"),
        own_posteriors=True,
        normal_posteriors=True,
    ),
    "adversarial": Bound(
        lambda: Adversarial_ELBO(Trace_ELBO(), Spread()),
        reparameterised=True,
        observation_mean=True,
    ),
    "mutual_posterior": Bound(
        lambda: MutualPosterior_ELBO(eta=1.0, gamma=0.1),
        own_posteriors=True,
    ),
}

Case = tuple[str, str, str]  # names of a model, a guide and a bound


def draws_of(model: str, guide: str) -> Draws | None:
    """How a guide draws; None for the own guide of a model that has none."""
    return MODELS[model].own_guide if guide == "own" else GUIDES[guide].draws


def refusals(model: str, guide: str, bound: str) -> Iterator[str]:
    """Why a combination must be refused; nothing where it is defined."""
    m, q, b = MODELS[model], draws_of(model, guide), BOUNDS[bound]
    assert q is not None

    # The rest says nothing of sites that are summed out.
    if m.clusters:
        if not q.discrete:
            yield "the guide has continuous draws alone, but a latent is discrete"
        elif not b.sums_out:
            place = "the guide" if m.clusters_in_guide else "the prior"
            yield f"a discrete latent would be drawn from {place}, not summed over"
        return

    if b.mixture and not q.mixture:
        yield "the guide's draw is none from a mixture"
    if b.reparameterised and not q.reparameterised:
        yield "the guide's draws have no gradients"

    if b.analytic_kl and q.cancels:
        yield "the guide's density is to cancel draw by draw"
    if b.analytic_kl and q.bottom_up:
        yield "the guide runs against the order of the model"

    if b.own_posteriors and q.given_others:
        yield "the guide draws a site given another"
    if b.normal_posteriors:
        if not q.normal:
            yield "a posterior is not normal"
        if not m.real_latents:
            draw = "the joint draw" if q.joint else "a normal draw"
            yield f"a map onto a support follows {draw}"
        if not m.independent_priors:
            yield "a prior depends on another latent"
        if not m.normal_priors:
            yield "a prior is not normal"

    if b.draws_prior and not m.prior_gradients:
        yield "a prior that learns has draws without gradients"
    if b.observation_mean and not m.observation_mean:
        yield "the observation has no mean"


def undefined(model: str, guide: str, bound: str) -> bool:
    """Whether a combination must be refused."""
    return any(refusals(model, guide, bound))


def _worth_a_case(model: str, guide: str, bound: str) -> bool:
    """Whether the guide exists; one that has no clusters refuses them at one bound."""
    if draws_of(model, guide) is None:
        return False
    return not MODELS[model].clusters or guide == "own" or BOUNDS[bound].sums_out


EVERYTHING = itertools.product(MODELS, GUIDES, BOUNDS)
ALL_CASES: list[Case] = [case for case in EVERYTHING if _worth_a_case(*case)]
ALL_PAIRS = sorted({(m, g) for m, g, _ in ALL_CASES if not undefined(m, g, "trace")})


def aims(case: Case) -> frozenset:
    """What one case shows: three pairs that compose, or one refusal by one bound."""
    reasons = tuple(refusals(*case))
    if reasons:
        return frozenset([("refusal", case[-1], reasons)])

    named = zip(("model", "guide", "bound"), case, strict=True)
    return frozenset(itertools.combinations(named, 2))


def covering(candidates: list, aims: Callable[..., frozenset], seed: int = 0) -> list:
    """A small subset of the candidates that shows all that they show together.

    Greedy: take what shows most that no other has shown, in an order that the seed
    shuffles, so that rows meet mixed company. What there is to gain only ever falls, so
    one pass for each gain is enough.
    """
    shuffled = list(candidates)
    random.Random(seed).shuffle(shuffled)
    missing = set().union(*map(aims, candidates))
    chosen = set()

    for gain in range(max(len(aims(c)) for c in candidates), 0, -1):
        for candidate in shuffled:
            new = aims(candidate) & missing
            if len(new) == gain:
                chosen.add(candidate)
                missing -= new

    return [c for c in candidates if c in chosen]


def _rows_of(pair: tuple[str, str]) -> frozenset:
    """What a pair shows where a guide need not meet every model."""
    model, guide = pair
    own = model if guide == "own" else None
    return frozenset([("model", model), ("guide", guide), ("own", own)])


FULL = os.environ.get("PYRO_VAES_ZOO") == "full"
CASES = ALL_CASES if FULL else covering(ALL_CASES, aims)
# Of the draws of this size, one that leaves the slow guides to small models.
PAIRS = ALL_PAIRS if FULL else covering(ALL_PAIRS, _rows_of, seed=7)
