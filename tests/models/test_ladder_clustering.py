"""Mixtures on the rungs of a ladder, GM-DGM and M2: items T10-T16 and T18 of their specification."""

import functools
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import MixtureSameFamily, Normal
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, infer_discrete
from torch import nn

from pyro_vaes.diagnostics import code_length, log_likelihood, log_weights, to_datatree
from pyro_vaes.infer import (
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    KLWarmup,
    MutualPosterior_ELBO,
    ProgressiveRungs,
    StickingTheLanding_ELBO,
    check,
    fit,
    scale_latents,
)
from pyro_vaes.models import M2, GaussianMixtureDGM, LadderClusteringVAE, LadderVAE
from pyro_vaes.models.cluster_sites import as_labels
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, MixturePrior, NormalHead, mlp_ladder

D, DIMS, CLUSTERS = 12, [2, 3], [4, 3]
ENUM = TraceEnum_ELBO(max_plate_nesting=1)
quick = functools.partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def binary(rows=9):
    return torch.bernoulli(torch.full((rows, D), 0.4))


def mixtures(clusters=CLUSTERS, *, full=False):
    priors = [MixturePrior(d, k, full_covariance=full, scale=0.7) for k, d in zip(clusters, DIMS, strict=True)]
    with torch.no_grad():
        for prior in priors:
            prior.logits.normal_()
            prior.raw_scale.add_(0.3 * torch.randn_like(prior.raw_scale))
            if prior.lower is not None:
                prior.lower.normal_(std=0.4)
    return priors


class Rung(nn.Module):
    """A rung of form C; ``blind`` to y it is one of form B."""

    def __init__(self, width, clusters, dim, *, blind=False):
        super().__init__()
        self.net, self.blind = Chain(MLP(width + clusters, [6], 6), NormalHead(6, dim)), blind

    def forward(self, h, y):
        return self.net(h, torch.zeros_like(y) if self.blind else y)


class AtZero(nn.Module):
    """The rung of form B that equals a blind one of form C."""

    def __init__(self, rung, clusters):
        super().__init__()
        self.rung, self.clusters = rung, clusters

    def forward(self, h):
        return self.rung(h, h.new_zeros(self.clusters))


class Counted(nn.Module):
    """A network that notes the shapes it is given and returns."""

    def __init__(self, net):
        super().__init__()
        self.net, self.shapes = net, []

    def forward(self, *inputs):
        out = self.net(*inputs)
        self.shapes.append(tuple(out.shape))
        return out


def make(form="A", *, clusters=CLUSTERS, full=False, blind=False, **options):
    """A pair of rungs; the parts are those of form A, whatever the form."""
    networks, priors = mlp_ladder(D, DIMS, width=8, activation=nn.LeakyReLU), mixtures(clusters, full=full)
    sizes = list(zip([D, 8], clusters, DIMS, strict=True))
    if form in ("B classifier", "C"):
        options["classifiers"] = [MLP(w, [], k) for w, k, _ in sizes]
    if form == "C":
        networks = networks._replace(rungs=[Rung(*s, blind=blind) for s in sizes])
        options["clusters_to_rungs"] = True
    return LadderClusteringVAE(*networks, BernoulliLikelihood(), DIMS, priors=priors, **options)


def value(bound, model, guide, *args, seed=3):
    """The bound, summed over the batch, with the randomness of a seed."""
    pyro.set_rng_seed(seed)
    return -bound.loss(model, guide, *args)


def draws(vlac, x, seed=3):
    """z_1 .. z_L as the guide of form A draws them, and their posteriors."""
    pyro.set_rng_seed(seed)
    sites = poutine.trace(vlac.guide).get_trace(x).nodes
    names = [f"z_{level}" for level in range(1, len(vlac.latent_dims) + 1)]
    return [sites[n]["value"] for n in names], [sites[n]["fn"] for n in names]


def by_hand(vlac, x, z, q):
    """log r(x|z) + sum_l log sum_k pi_lk N(z_l; mu_lk, Sigma_lk) - sum_l log q(z_l|x), per datum."""
    total = vlac.likelihood(vlac.decode(z)).log_prob(x)
    for prior, z_l, q_l in zip(vlac.mixtures, z, q, strict=True):
        parts = []
        for k in range(prior.num_components):
            scale = nn.functional.softplus(prior.raw_scale[k]) + prior.min_scale
            tril = torch.diag(scale)
            if prior.lower is not None:
                tril = tril + torch.zeros_like(tril).index_put(
                    tuple(torch.tril_indices(prior.dim, prior.dim, -1)), prior.lower[k]
                )
            normal = torch.distributions.MultivariateNormal(prior.loc[k], scale_tril=tril)
            parts.append(torch.log_softmax(prior.logits, 0)[k] + normal.log_prob(z_l))
        total = total + torch.logsumexp(torch.stack(parts), 0) - q_l.log_prob(z_l)
    return total


# ------------------------------------------------------------------------------------------------ T10-T16


@pytest.mark.parametrize("full", [False, True])
def test_T10_one_component_per_rung_is_a_ladder_with_normal_priors(full):
    vlac, x = make(clusters=[1, 1], full=full), binary()
    ladder = LadderVAE(
        vlac.encoders, vlac.rungs, vlac.merges, vlac.decoders, vlac.likelihood, DIMS,
        priors=[lambda_module(lambda p=p: p.component(torch.tensor(0))) for p in vlac.mixtures],
    )  # fmt: skip
    wanted = value(Trace_ELBO(), ladder.model, ladder.guide, x)
    assert value(Trace_ELBO(), vlac.model, vlac.guide, x) == pytest.approx(wanted, abs=1e-10)
    assert value(ENUM, vlac.cluster_model, vlac.guide, x) == pytest.approx(wanted, abs=1e-10)
    for prior in vlac.mixtures:
        prior.place(torch.zeros(1, prior.dim), 1.0)
    plain = LadderVAE(vlac.encoders, vlac.rungs, vlac.merges, vlac.decoders, vlac.likelihood, DIMS)
    wanted = value(Trace_ELBO(), plain.model, plain.guide, x)
    assert value(Trace_ELBO(), vlac.model, vlac.guide, x) == pytest.approx(wanted, abs=1e-10)


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


@pytest.mark.parametrize("full", [False, True])
def test_T11_form_A_is_one_number_whichever_way_it_is_computed(full):
    vlac, x = make(full=full), binary()
    z, q = draws(vlac, x)
    wanted = by_hand(vlac, x, z, q).sum().item()
    assert value(Trace_ELBO(), vlac.model, vlac.guide, x) == pytest.approx(wanted, abs=1e-10)
    assert value(ENUM, vlac.cluster_model, vlac.guide, x) == pytest.approx(wanted, abs=1e-10)
    pyros = [lambda_module(lambda p=p: MixtureSameFamily(p.weights, p.components)) for p in vlac.mixtures]
    ladder = LadderVAE(vlac.encoders, vlac.rungs, vlac.merges, vlac.decoders, vlac.likelihood, DIMS, priors=pyros)
    assert value(Trace_ELBO(), ladder.model, ladder.guide, x) == pytest.approx(wanted, abs=1e-10)


def test_T11_the_gradients_agree_too():
    vlac, x = make(full=True), binary()
    parameters, gradients = list(vlac.parameters()), []
    for bound, model in ((Trace_ELBO(), vlac.model), (ENUM, vlac.cluster_model)):
        pyro.set_rng_seed(3)
        gradients.append(torch.autograd.grad(bound.differentiable_loss(model, vlac.guide, x), parameters))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_T12_components_have_no_order_and_may_be_split():
    vlac, x = make(), binary()
    wanted = value(Trace_ELBO(), vlac.model, vlac.guide, x)
    order, prior = torch.tensor([2, 0, 3, 1]), vlac.mixtures[0]
    with torch.no_grad():
        for parameter in (prior.logits, prior.loc, prior.raw_scale):
            parameter.copy_(parameter[order])
    assert value(Trace_ELBO(), vlac.model, vlac.guide, x) == pytest.approx(wanted, abs=1e-12 * abs(wanted))
    split, twice = make(clusters=[5, 3]), torch.tensor([0, 1, 2, 3, 3])
    split.load_state_dict({n: t for n, t in vlac.state_dict().items() if "priors.0" not in n}, strict=False)
    with torch.no_grad():
        for name in ("logits", "loc", "raw_scale"):
            getattr(split.mixtures[0], name).copy_(getattr(prior, name)[twice])
        split.mixtures[0].logits[3:] -= math.log(2)
    assert value(Trace_ELBO(), split.model, split.guide, x) == pytest.approx(wanted, abs=1e-12 * abs(wanted))


def y_part(logits, prior, q):
    """sum_k q_k (log pi_k + E log N(z; k) - log q_k), the part of form B that q(y) enters, with E by quadrature."""
    log_q = torch.log_softmax(logits, -1)
    return (log_q.exp() * (expected(prior, q) - log_q)).sum(-1)


def expected(prior, q):
    """log pi_k + E_q log N(z; mu_k, Sigma_k) as an exact average over sigma points: log N is quadratic in z."""
    m, s = q.base_dist.loc, q.base_dist.scale
    points = math.sqrt(prior.dim) * torch.cat([torch.eye(prior.dim), -torch.eye(prior.dim)])
    z = m + s * points.unsqueeze(1)  # (2 dim, B, dim), with the mean and covariance of q
    return prior().log_joint(z).mean(0)


@pytest.mark.parametrize("full", [False, True])
def test_T13_the_closed_form_is_the_optimum_of_form_B(full):
    vlac, x = make("B", full=full), binary()
    for logits, prior, q in zip(vlac.cluster_logits(x), vlac.mixtures, vlac.posteriors(x), strict=True):
        logits = logits.detach().requires_grad_()
        torch.testing.assert_close(logits, expected(prior, q), rtol=0, atol=1e-10)
        part = y_part(logits, prior, q)
        (gradient,) = torch.autograd.grad(part.sum(), logits)
        assert gradient.abs().max() < 1e-8
        torch.testing.assert_close(part, torch.logsumexp(logits, -1), rtol=0, atol=1e-8)
        for _ in range(5):
            assert (y_part(logits + torch.randn_like(logits), prior, q) < part).all()


def test_T14_the_forms_are_ordered():
    """Draw by draw A >= B; in closed form, and so in expectation, B at its optimum >= B at any other q(y)."""
    optimal = make("B")
    other = make("B classifier")
    other.load_state_dict(optimal.state_dict(), strict=False)
    x = binary()
    for seed in range(20):
        a = value(ENUM, optimal.cluster_model, optimal.guide, x, seed=seed)
        for vlac in (optimal, other):
            assert value(ENUM, vlac.cluster_model, vlac.cluster_guide, x, seed=seed) <= a + 1e-10
    for level in range(len(DIMS)):
        prior, q = optimal.mixtures[level], optimal.posteriors(x)[level]
        best, worse = (y_part(v.cluster_logits(x)[level], prior, q) for v in (optimal, other))
        assert (worse < best).all()


def test_T14_form_B_equals_the_hand_formula():
    vlac, x = make("B classifier"), binary()
    z, q = draws(vlac, x)
    wanted = vlac.likelihood(vlac.decode(z)).log_prob(x).sum()
    for logits, prior, z_l, q_l in zip(vlac.cluster_logits(x), vlac.mixtures, z, q, strict=True):
        log_q = torch.log_softmax(logits, -1)
        wanted = wanted + (log_q.exp() * (prior().log_joint(z_l) - log_q)).sum() - q_l.log_prob(z_l).sum()
    got = value(ENUM, vlac.cluster_model, vlac.cluster_guide, x)
    assert got == pytest.approx(wanted.item(), abs=1e-10)


@pytest.mark.parametrize("form", ["A", "B", "B classifier", "C"])
def test_T15_enumeration_does_not_multiply_the_passes_of_the_decoder(form):
    vlac, x = make(form), binary(9)
    counted = Counted(vlac.decoders[0])
    vlac.decoders[0] = counted
    guide = vlac.guide if form == "A" else vlac.cluster_guide
    ENUM.differentiable_loss(vlac.cluster_model, guide, x).backward()
    assert counted.shapes == [(*CLUSTERS[::-1], 9, D) if form == "C" else (9, D)]


def test_T16_form_C_with_rungs_blind_to_the_cluster_is_form_B():
    """At the means exactly; n = 50 draws for 9 data agree within 4 standard errors."""
    c, x = make("C", blind=True), binary()
    rungs = [AtZero(rung, k) for rung, k in zip(c.rungs, CLUSTERS, strict=True)]
    b = LadderClusteringVAE(
        c.encoders, rungs, c.merges, c.decoders, c.likelihood, DIMS, priors=c.mixtures, classifiers=c.classifiers
    )
    with MeansForDraws():  # the same draws in both, where C has one for each y
        values = [-ENUM.loss(v.cluster_model, v.cluster_guide, x) for v in (b, c)]
        assert values[0] == pytest.approx(values[1], abs=1e-10)
    sampled = torch.tensor(
        [[value(ENUM, v.cluster_model, v.cluster_guide, x, seed=s) for s in range(50)] for v in (b, c)]
    )
    assert (sampled.mean(1).diff() / (sampled.var(1).sum() / 50).sqrt()).abs() < 4


class MeansForDraws(poutine.messenger.Messenger):
    """Latent normals take their means for draws."""

    def _pyro_sample(self, msg):
        if isinstance(getattr(msg["fn"], "base_dist", None), Normal) and msg["value"] is None:
            msg["value"] = msg["fn"].mean
            msg["done"] = True


# ------------------------------------------------------------------------------------------------ T18


@pytest.mark.parametrize("full", [False, True])
def test_T18_responsibilities_sum_to_one_and_the_kl_is_not_negative(full):
    """n = 4000 draws for each of 9 data; no mean is below zero by more than 4 standard errors."""
    vlac, x = make(full=full), binary()
    for r in vlac.responsibilities(x):
        torch.testing.assert_close(r.sum(-1), torch.ones(9), rtol=0, atol=1e-12)
    with torch.no_grad():
        for prior, q in zip(vlac.mixtures, vlac.posteriors(x), strict=True):
            z = q.sample((4000,))
            terms = q.log_prob(z) - prior().log_prob(z)
            assert (terms.mean(0) > -4 * terms.std(0) / math.sqrt(4000)).all()
            assert (terms.mean(0) > 0.1).any(), "a KL between different distributions"


def gmdgm(clusters=4, dim=2, **options):
    prior = MixturePrior(dim, clusters, learn_weights=False, scale=0.7)
    return GaussianMixtureDGM(
        MLP(D, [6], clusters), Rung(D, clusters, dim), MLP(dim, [6], D), BernoulliLikelihood(), prior, **options
    )


def brute_force(pair, x, z, decode, prior):
    """sum_y q(y|x) [log p(x|z_y, y) + log p(y) + log p(z_y|y) - log q(z_y|x, y)] + H(q(y|x)), with z (K, B, d)."""
    log_q, total = torch.log_softmax(pair.classifier(x), -1), 0.0
    for k, z_k in enumerate(z):
        y = torch.eye(len(z))[k].expand(len(x), -1)
        terms = pair.likelihood(decode(z_k, y)).log_prob(x) - math.log(len(z)) + prior(k).log_prob(z_k)
        total = total + log_q[:, k].exp() * (terms - pair.encoder(x, y).log_prob(z_k) - log_q[:, k])
    return total.sum().item()


def drawn(pair, x, seed=3):
    """z_y for each y as the enumerated guide draws them, (K, B, d)."""
    pyro.set_rng_seed(seed)
    return poutine.trace(poutine.enum(pair.guide, first_available_dim=-2)).get_trace(x).nodes["z"]["value"]


def test_T18_the_bound_of_gm_dgm_is_the_sum_over_its_clusters():
    pair, x = gmdgm(), binary()
    z = drawn(pair, x)
    wanted = brute_force(pair, x, z, lambda z, y: pair.decoder(z), lambda k: pair.prior.component(torch.tensor(k)))
    assert z.shape == (4, 9, 2)
    assert value(ENUM, pair.model, pair.guide, x) == pytest.approx(wanted, abs=1e-10)
    ladder = LadderClusteringVAE(
        [], [pair.encoder], [], [pair.decoder], pair.likelihood, [2],
        priors=[pair.prior], classifiers=[pair.classifier], clusters_to_rungs=True,
    )  # fmt: skip
    form_c = value(ENUM, ladder.cluster_model, ladder.cluster_guide, x)
    assert form_c == pytest.approx(wanted, abs=1e-10), "GM-DGM is form C with one rung"


def test_T18_m2_is_gm_dgm_with_a_standard_normal_and_the_cluster_in_the_decoder():
    pair, x = M2(MLP(D, [6], 4), Rung(D, 4, 2), MLP(2 + 4, [6], D), BernoulliLikelihood(), 2, 4), binary()
    normal = Normal(torch.zeros(2), 1.0).to_event(1)
    wanted = brute_force(pair, x, drawn(pair, x), pair.decoder, lambda k: normal)
    assert value(ENUM, pair.model, pair.guide, x) == pytest.approx(wanted, abs=1e-10)


# ------------------------------------------------------------------------------------------------ labels


def y_term(vlac, x, z, form):
    """What z_1 and y_1, without a label, add to the bound."""
    log_joint = vlac.mixtures[0]().log_joint(z[0])
    log_q = torch.log_softmax(log_joint if form == "A" else vlac.cluster_logits(x)[0], -1)
    return (log_q.exp() * (log_joint - log_q)).sum(-1)


@pytest.mark.parametrize("form", ["A", "B", "B classifier", "C"])
def test_labels_are_evidence_for_their_rung(form):
    """With all labels known the bound is that of the model in which y is observed; with none, that without labels."""
    vlac, x = make(form), binary()
    guide = vlac.guide if form == "A" else vlac.cluster_guide
    labels = torch.arange(9) % CLUSTERS[1]
    if form != "C":
        z, q = draws(vlac, x)
        wanted = vlac.likelihood(vlac.decode(z)).log_prob(x) - sum(r.log_prob(v) for r, v in zip(q, z, strict=True))
        wanted = wanted + y_term(vlac, x, z, form) + vlac.mixtures[1]().log_joint(z[1])[torch.arange(9), labels]
        assert value(ENUM, vlac.cluster_model, guide, x, labels) == pytest.approx(wanted.sum().item(), abs=1e-10)
    unlabelled = value(ENUM, vlac.cluster_model, guide, x)
    none = torch.full((9,), -1)
    assert value(ENUM, vlac.cluster_model, guide, x, none) == pytest.approx(unlabelled, abs=1e-10)
    vlac.label_weight = 1.5
    loss = ENUM.differentiable_loss(vlac.cluster_model, guide, x, torch.where(torch.arange(9) < 4, labels, -1))
    gradients = torch.autograd.grad(loss, list(vlac.parameters()), allow_unused=True)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients if g is not None)


def test_the_classification_term_is_weighed_and_only_where_there_are_labels():
    plain, x = gmdgm(), binary()
    labels = torch.tensor([0, -1, 3, 2, -1, -1, 1, -1, 0])
    known = labels >= 0
    term = torch.log_softmax(plain.classifier(x), -1)[known, labels[known]].sum().item()
    without = value(ENUM, plain.model, plain.guide, x, labels)
    plain.label_weight = 1.7
    assert value(ENUM, plain.model, plain.guide, x, labels) == pytest.approx(without + 1.7 * term, abs=1e-10)
    assert value(ENUM, plain.model, plain.guide, x) == pytest.approx(
        value(ENUM, plain.model, plain.guide, x, torch.full((9,), -1)), abs=1e-10
    )


BOUNDS = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    FreeBits_ELBO(0.0),
    ImportanceWeighted_ELBO(1),
    StickingTheLanding_ELBO(),
    DReG_ELBO(1),
]
MIXED = torch.tensor([0, -1, 2, 2, -1, -1, 1, -1, 0])


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: type(bound).__name__)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("rung", [1, 2])
def test_labels_of_the_mixture_are_those_of_the_enumerated_model(bound, full, rung):
    vlac, x = make(full=full, labelled_rung=rung), binary()
    for labels in (MIXED, MIXED.clamp(min=0), torch.full((9,), -1)):
        wanted = value(ENUM, vlac.cluster_model, vlac.guide, x, labels)
        assert value(bound, vlac.model, vlac.guide, x, labels) == pytest.approx(wanted, abs=1e-10)
    unlabelled = value(ENUM, vlac.cluster_model, vlac.guide, x)
    assert value(bound, vlac.model, vlac.guide, x) == pytest.approx(unlabelled, abs=1e-10)
    assert value(bound, vlac.model, vlac.guide, x, torch.full((9,), -1)) == pytest.approx(unlabelled, abs=1e-10)
    assert abs(value(bound, vlac.model, vlac.guide, x, MIXED) - unlabelled) > 0.1


def test_gradients_of_labels_are_those_of_the_enumerated_model():
    vlac, x = make(), binary()
    found = []
    for bound, model in ((Trace_ELBO(), vlac.model), (ENUM, vlac.cluster_model)):
        pyro.set_rng_seed(3)
        loss = bound.differentiable_loss(model, vlac.guide, x, MIXED)
        found.append(torch.autograd.grad(loss, list(vlac.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_labels_of_the_mixture_with_many_particles_and_in_the_evidence():
    """log p(x, y) by importance sampling; particles in one pass are those of the joint prior."""
    vlac, x = make(), binary()
    draws = log_weights(vlac.model, vlac.guide, (x, MIXED), 6)
    without = log_weights(vlac.model, vlac.guide, (x,), 6)
    known = MIXED >= 0
    torch.testing.assert_close(draws[:, ~known], without[:, ~known])
    assert (draws < without)[:, known].all(), "p(y | z) < 1"
    pyro.set_rng_seed(0)
    tree = to_datatree(vlac.model, vlac.guide, (x, MIXED), 5)
    z = torch.from_numpy(tree.posterior["z_2"].values)[0]  # (5, 9, 3)
    weights = torch.from_numpy(to_datatree(vlac.model, vlac.guide, (x,), 5).sample_stats["log_weight"].values)[0]
    log_p = vlac.mixtures[1]().responsibilities(z).log()[:, known].gather(-1, MIXED[known].expand(5, -1).unsqueeze(-1))
    got = torch.from_numpy(tree.sample_stats["log_weight"].values)[0] - weights
    torch.testing.assert_close(got[:, known], log_p.squeeze(-1), rtol=0, atol=1e-9)
    assert set(tree.constant_data) == {"labels"}


def test_KL_weights_go_with_labels():
    """A label is part of the prior, whose weight it has; without a weight of its own the enumerated sum has none."""
    vlac, x = make(), binary()
    with scale_latents(0.3):
        enumerated = value(ENUM, vlac.cluster_model, vlac.guide, x, MIXED)
        assert value(Trace_ELBO(), vlac.model, vlac.guide, x, MIXED) == pytest.approx(enumerated, abs=1e-10)
        for form in ("B", "C"):
            other = make(form)
            assert math.isfinite(value(ENUM, other.cluster_model, other.cluster_guide, x, MIXED))
    z, q = draws(vlac, x)
    wanted, known = vlac.likelihood(vlac.decode(z)).log_prob(x).sum(), MIXED >= 0
    log_joint = [prior().log_joint(z_l) for prior, z_l in zip(vlac.mixtures, z, strict=True)]
    log_p = [torch.logsumexp(joint, -1) for joint in log_joint]
    log_p[1] = torch.where(known, log_joint[1][torch.arange(9), MIXED], log_p[1])
    weights = {"z_1": 0.2, "z_2": 0.7}
    for w, log_p_l, z_l, q_l in zip(weights.values(), log_p, z, q, strict=True):
        wanted = wanted - w * (q_l.log_prob(z_l) - log_p_l).sum()
    with scale_latents(weights):
        assert value(Trace_ELBO(), vlac.model, vlac.guide, x, MIXED) == pytest.approx(wanted.item(), abs=1e-10)


@pytest.mark.parametrize("form", ["A", "A enumerated", "B", "B classifier", "C", "GM-DGM"])
def test_labels_train_under_a_warm_up(form):
    torch.set_default_dtype(torch.float32)
    model, guide, owner = labelled_pair(form)
    loss, options = (Trace_ELBO() if form == "A" else TraceEnum_ELBO()), {"epochs": 2, "batch_size": 3, "seed": 1}
    history = fit(model, guide, (binary(), MIXED), loss=loss, callbacks=[KLWarmup(5)], progress=False, **options)
    assert all(map(math.isfinite, history.train)) and all(p.isfinite().all() for p in owner.parameters())


UNEQUAL = {"z_1": 0.1, "y_1": 0.1, "z_2": 1.0, "y_2": 1.0}


def test_weights_of_single_rungs_under_enumeration():
    """Where the model alone has y they are refused, and the model without y is pointed to; where q has y they work."""
    vlac, x = make(), binary()
    for args in ((x,), (x, MIXED)):
        with (
            pytest.raises(ValueError, match=r"must have one KL weight.*LadderClusteringVAE\.model"),
            scale_latents(UNEQUAL),
        ):
            ENUM.loss(vlac.cluster_model, vlac.guide, *args)
    with scale_latents(UNEQUAL):
        report = check(vlac.cluster_model, vlac.guide, (x, MIXED), loss=ENUM)
    assert not report.ok and "LadderClusteringVAE.model with Trace_ELBO" in str(report)
    sites, injections = [["z_1", "y_1"], ["z_2", "y_2"]], [merge.network for merge in vlac.merges]
    options = {"epochs": 1, "batch_size": 3, "seed": 1, "progress": False}
    with pytest.raises(ValueError, match=r"must have one KL weight.*LadderClusteringVAE\.model"):
        fading = [ProgressiveRungs(sites, injections, 4)]
        fit(vlac.cluster_model, vlac.guide, (x, MIXED), loss=TraceEnum_ELBO(), callbacks=fading, **options)
    fading = [ProgressiveRungs([["z_1"], ["z_2"]], injections, 4)]
    assert math.isfinite(fit(vlac.model, vlac.guide, (x, MIXED), callbacks=fading, **options).train[-1])
    b = make("B")
    with scale_latents(UNEQUAL):
        assert math.isfinite(value(ENUM, b.cluster_model, b.cluster_guide, x, MIXED))


@pytest.mark.parametrize("form", ["B", "B classifier"])
def test_posteriors_are_compared_without_the_site_of_the_labels(form):
    vlac, x = make(form), binary()
    for labels in (MIXED, torch.full((9,), -1)):  # which rows of a batch are labelled does not matter
        with pytest.raises(ValueError, match=r"'y_2' is a point.*sites=\['y_1', 'z_1', 'z_2'\]"):
            MutualPosterior_ELBO(ENUM, eta=1.0).loss(vlac.cluster_model, vlac.cluster_guide, x, labels)
    without = MutualPosterior_ELBO(ENUM, eta=1.0, gamma=0.5)
    assert math.isfinite(value(without, vlac.cluster_model, vlac.cluster_guide, x))
    with pytest.raises(ValueError, match="'y_2' is a point"):  # whose sites were looked at without labels
        without.loss(vlac.cluster_model, vlac.cluster_guide, x, MIXED)
    bound = MutualPosterior_ELBO(ENUM, eta=1.0, gamma=0.5, sites=["y_1", "z_1", "z_2"])
    loss = bound.differentiable_loss(vlac.cluster_model, vlac.cluster_guide, x, MIXED)
    gradients = torch.autograd.grad(loss, list(vlac.parameters()), allow_unused=True)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients if g is not None)
    pair = gmdgm()
    with pytest.raises(ValueError, match=r"'y' is a point.*Use Trace_ELBO"):
        MutualPosterior_ELBO(ENUM, eta=1.0).loss(pair.model, pair.guide, x, MIXED)


KINDS = ["A", "A enumerated", "B", "B classifier", "C", "GM-DGM"]


def bound_of(kind):
    return Trace_ELBO() if kind == "A" else ENUM


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_labels_of_any_integer_dtype(kind, dtype):
    model, guide, owner = labelled_pair(kind)
    owner.label_weight, x, labels, bound = 1.5, binary(), MIXED.clamp(min=0), bound_of(kind)
    wanted = value(bound, model, guide, x, labels)
    assert value(bound, model, guide, x, labels.to(dtype)) == wanted
    if dtype.is_signed:
        assert value(bound, model, guide, x, MIXED.to(dtype)) == value(bound, model, guide, x, MIXED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 1.5])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((9,), 7), r"Labels run from 7 to 7.*wanted 0\.\."),
        (torch.full((9,), -100), r"Labels run from -100.*-1 for none"),
        (torch.full((9,), 255, dtype=torch.uint8), "Labels run from 255"),
        (torch.zeros(9), r"whole numbers.*got torch\.float32"),
        (torch.zeros(9, dtype=torch.bool), r"whole numbers.*got torch\.bool"),
        (torch.zeros(9, 1).long(), r"shape \(9, 1\) where there are 9 data"),
        (torch.zeros(8).long(), r"shape \(8,\) where there are 9 data"),
        (torch.zeros(9).long().numpy(), "got ndarray where there are 9 data.*as_tensor"),
    ],
)
def test_labels_that_are_none_are_refused_in_words_by_guides_too(kind, weight, labels, message):
    model, guide, owner = labelled_pair(kind)
    owner.label_weight, x = weight, binary()
    programs = [lambda *args: bound_of(kind).loss(model, guide, *args), model]
    programs += [] if kind.startswith("A") else [guide]
    for program in programs:
        with pytest.raises(ValueError, match=message):
            program(x, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_looked_at_before_training(kind):
    model, guide, owner = labelled_pair(kind)
    owner.label_weight, x = 1.5, binary(30)
    options = {"loss": TraceEnum_ELBO() if kind != "A" else None, "epochs": 1, "batch_size": 5, "progress": False}
    for labels in (torch.arange(30) % 3, (torch.arange(30) % 3).to(torch.uint8)):
        assert math.isfinite(fit(model, guide, (x, labels), **options).train[-1])
        labels[17] = 9
        before = [p.clone() for p in owner.parameters()]
        with pytest.raises(ValueError, match="Labels run from 0 to 9"):
            fit(model, guide, (x, labels), **options)
        assert all(torch.equal(a, b) for a, b in zip(owner.parameters(), before, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="looks at labels on a GPU, and there is none")
@pytest.mark.parametrize("kind", ["A", "B", "GM-DGM"])
def test_labels_on_a_gpu_are_looked_at_before_training(kind):
    model, guide, owner = labelled_pair(kind)
    owner.label_weight, x, bound = 1.5, binary().cuda(), bound_of(kind)
    owner.cuda()
    with torch.no_grad(), pytest.raises(ValueError, match="Labels run from 7"):
        guide(x, torch.full((9,), 7).cuda()) if kind != "A" else model(x, torch.full((9,), 7).cuda())
    with pytest.raises(ValueError, match="Labels run from 7"):
        fit(model, guide, (x, torch.full((9,), 7)), loss=bound, progress=False)


def test_a_training_step_on_another_device_does_not_wait_for_labels():
    """Where gradients are taken their values are not read, which a device without values would refuse."""
    labels, x = torch.empty(9, dtype=torch.int16, device="meta"), torch.empty(9, D, device="meta")
    assert as_labels(labels, x, 4).dtype == torch.int64
    with torch.no_grad(), pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        as_labels(labels, x, 4)


def labelled_pair(kind):
    """Model, guide and their owner."""
    owner = gmdgm() if kind == "GM-DGM" else make(kind)
    if kind in ("A", "GM-DGM"):
        return owner.model, owner.guide, owner
    return owner.cluster_model, owner.guide if kind == "A enumerated" else owner.cluster_guide, owner


@pytest.mark.parametrize("kind", ["GM-DGM", "B", "B classifier", "C"])
def test_figures_do_not_depend_on_the_weight_of_the_classification_term(kind):
    """It is part of what is trained, but of no density: likelihoods, code lengths and weights leave it out."""
    model, guide, owner = labelled_pair(kind)
    data = binary(), MIXED
    found = []
    for weight in (0.0, 20.0):
        owner.label_weight = weight
        estimate, code = log_likelihood(model, guide, data, 30), code_length(model, guide, data)
        tree = to_datatree(model, guide, data, 5, groups=["sample_stats"])
        weights = torch.from_numpy(tree.sample_stats["log_weight"].values)
        found.append([estimate.log_likelihood, estimate.elbo, code.bits_back, code.latents, weights])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_importance_weighted_bounds_count_the_classification_term_once():
    pair, x, labels = gmdgm(), binary(), torch.arange(9) % 4
    term = torch.log_softmax(pair.classifier(x), -1)[torch.arange(9), labels].sum().item()
    without = value(ImportanceWeighted_ELBO(7), pair.model, pair.guide, x, labels)
    pair.label_weight = 20.0
    got = value(ImportanceWeighted_ELBO(7), pair.model, pair.guide, x, labels)
    assert got == pytest.approx(without + 20 * term, abs=1e-9)


def two_kinds(rows=200, known=10):
    """Bits of two kinds, and labels for some of them."""
    torch.set_default_dtype(torch.float32)
    kind = torch.arange(rows) % 2
    x = torch.bernoulli(torch.where(kind.unsqueeze(-1) == (torch.arange(D) < D // 2), 0.9, 0.1))
    return x, torch.where(torch.arange(rows) < known, kind, -1), kind


@pytest.mark.parametrize("form", ["A", "A enumerated", "GM-DGM"])
def test_a_few_labels_name_the_clusters(form):
    x, labels, kind = two_kinds()
    if form.startswith("A"):
        networks = mlp_ladder(D, [2], width=16)
        pair = LadderClusteringVAE(*networks, BernoulliLikelihood(), [2], priors=[MixturePrior(2, 2)])
        model, guide = pair.model if form == "A" else pair.cluster_model, pair.guide
    else:
        pair = gmdgm(2, label_weight=1.1 * 200 / 10)
        model, guide = pair.model, pair.guide
    args = (x, labels)
    loss = Trace_ELBO() if form == "A" else TraceEnum_ELBO()
    fit(model, guide, args, loss=loss, optim=quick, epochs=20, batch_size=20, seed=1, progress=False)
    r = pair.responsibilities(x)
    found = (r[0] if form.startswith("A") else r).argmax(-1)
    assert (found == kind)[10:].float().mean() > 0.9


# ------------------------------------------------------------------------------------------------ the models themselves


def test_assignments_are_those_of_the_enumerated_model():
    vlac, x = make(full=True), binary()
    means = {f"z_{i}": q.mean for i, q in enumerate(vlac.posteriors(x), start=1)}
    given = poutine.condition(vlac.cluster_model, means)
    best = poutine.trace(infer_discrete(given, first_available_dim=-2, temperature=0)).get_trace(x).nodes
    for level, r in enumerate(vlac.responsibilities(x), start=1):
        assert torch.equal(r.argmax(-1), best[f"y_{level}"]["value"])


def test_responsibilities_come_from_the_classifiers_where_there_are_some():
    vlac, x = make("B classifier"), binary()
    for r, classifier, h in zip(vlac.responsibilities(x), vlac.classifiers, vlac.path(x), strict=True):
        torch.testing.assert_close(r, classifier(h).softmax(-1))


def test_a_component_is_generated_from_by_conditioning():
    """n = 4000 draws of z_2 from its third component, within 5 standard errors of its mean."""
    vlac, k = make(), torch.full((4000,), 2)
    trace = poutine.trace(poutine.condition(vlac.cluster_model, {"y_2": k})).get_trace(size=4000)
    z, component = trace.nodes["z_2"]["value"], vlac.mixtures[1].component(torch.tensor(2))
    assert trace.nodes["_RETURN"]["value"].shape == (4000, D)
    assert ((z.mean(0) - component.mean).abs() < 5 * component.stddev / math.sqrt(4000)).all()
    assert len(trace.nodes["y_1"]["value"].unique()) == CLUSTERS[0]


def test_mixtures_start_where_the_codes_lie():
    vlac, x = make(), binary(200)
    vlac.start_from(x, rungs=[2], scale=0.1)
    codes = vlac.posteriors(x)[1].mean
    prior = vlac.mixtures[1]
    torch.testing.assert_close(prior.components.stddev, torch.full((3, 3), 0.1))
    nearest = torch.cdist(codes, prior.loc).argmin(-1)
    shares = torch.bincount(nearest, minlength=3) / 200
    assert (prior.weights.probs - shares).abs().max() < 0.25 and (prior.loc - codes.mean(0)).abs().max() < 3
    assert (vlac.mixtures[0].components.stddev - 0.7).abs().max() > 0.01, "the other rung is left alone"


def test_kl_weights_of_single_rungs():
    vlac, x, weights = make(), binary(), {"z_1": 0.2, "z_2": 0.7}
    z, q = draws(vlac, x)
    wanted = vlac.likelihood(vlac.decode(z)).log_prob(x).sum()
    for w, prior, z_l, q_l in zip(weights.values(), vlac.mixtures, z, q, strict=True):
        wanted = wanted - w * (q_l.log_prob(z_l) - prior().log_prob(z_l)).sum()
    with scale_latents(weights):
        assert value(Trace_ELBO(), vlac.model, vlac.guide, x) == pytest.approx(wanted.item(), abs=1e-10)
    both = {"z_1": 0.5, "z_2": 0.5, "y_1": 0.5, "y_2": 0.5}
    with scale_latents(0.5):
        one = value(Trace_ELBO(), vlac.model, vlac.guide, x)
    with scale_latents(both):
        assert value(ENUM, vlac.cluster_model, vlac.guide, x) == pytest.approx(one, abs=1e-10)


def test_importance_weights_are_the_same_with_clusters_summed_out_of_either_model():
    """In the prior's mixture, or as sites that are enumerated in the model."""
    vlac, x = make(), binary()
    found = []
    for program in (vlac.model, vlac.cluster_model):
        pyro.set_rng_seed(1)
        found.append(log_likelihood(program, vlac.guide, (x,), 1).log_likelihood)
    assert found[0].shape == (9,)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(labelled_rung=3), r"labelled_rung is one of 1\.\.2"),
        (lambda: make(label_weight=-1.0), "at least 0"),
        (lambda: make(classifiers=[nn.Identity()]), "2 rungs need 2 classifiers, but got 1"),
        (lambda: make(clusters_to_rungs=True), "form C needs classifiers"),
        (lambda: make("C").guide(binary()), r"use cluster_guide \(form C\)"),
        (lambda: make("C").posteriors(binary()), r"use cluster_guide \(form C\)"),
        (lambda: make("C").start_from(binary()), r"use cluster_guide \(form C\).*start_from codes"),
        (lambda: make().cluster_model(binary(), torch.zeros(9)), "whole numbers"),
        (lambda: make().cluster_model(binary(), torch.zeros(8).long()), r"shape \(8,\) where there are 9 data"),
        (lambda: make().cluster_model(None, torch.zeros(8).long()), "there are no data"),
        (lambda: make().cluster_model(binary(), torch.full((9,), 3)), r"wanted 0\.\.2"),
        (lambda: gmdgm(label_weight=-1.0), "at least 0"),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_priors_that_are_no_mixtures_are_named():
    networks = mlp_ladder(D, DIMS, width=8)
    with pytest.raises(ValueError, match=r"MixturePriors of \[2, 3\] dimensions, but got \[3, 2\]"):
        LadderClusteringVAE(*networks, BernoulliLikelihood(), DIMS, priors=mixtures()[::-1])
    with pytest.raises(ValueError, match=r"got \['Identity'\]"):
        LadderClusteringVAE(*networks, BernoulliLikelihood(), DIMS, priors=[mixtures()[0], nn.Identity()])
