"""A discriminator on top of any bound: the spec's items R1 and R7, loops by hand and by fit, exact resume."""

import copy
import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from pyro_vaes.infer import (
    Adversarial_ELBO,
    AggregatePosterior_ELBO,
    Callback,
    DReG_ELBO,
    EarlyStopping,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    MutualPosterior_ELBO,
    RecursiveMixture_ELBO,
    StratifiedMixture_ELBO,
    check,
    evaluate,
    fit,
)
from pyro_vaes.infer.adversarial import step_if_finite
from pyro_vaes.infer.bounds.global_batch import global_batch
from pyro_vaes.models import VAE, ConditionalVAE
from pyro_vaes.nn import MLP, Chain, ConvDecoder, ConvEncoder, GaussianLikelihood, LaplaceLikelihood, NormalHead
from pyro_vaes.nn.mlp import concatenate

SHAPE = (1, 6, 6)
adam = functools.partial(torch.optim.Adam, lr=1e-2)


def faces(rows=20):
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def conv_vae(seed=0):
    torch.manual_seed(seed)
    encoder = Chain(ConvEncoder(SHAPE, [2], 6), NormalHead(6, 2))
    return VAE(encoder, ConvDecoder(2, [2], SHAPE), LaplaceLikelihood(0.5, event_dim=3), 2)


def patches(*, norm=False, seed=5):
    """A map of logits, 3×3 for 6×6 images."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(3), nn.Dropout(0.3)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), *middle, nn.LeakyReLU(0.3), nn.Conv2d(3, 1, 3, 1, 1))


def state(module):
    return {n: t.clone() for n, t in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def reconstruction(vae, x, seed):
    """The mean at the draw that the bound makes with this seed."""
    pyro.set_rng_seed(seed)
    trace = poutine.trace(vae.guide).get_trace(x)
    return vae.likelihood(vae.decoder(trace.nodes["z"]["value"])).mean


def test_R1_adversarial_terms():
    vae, dis, x = conv_vae(), patches(), faces()
    plain, bound = Trace_ELBO(), Adversarial_ELBO(Trace_ELBO(), dis, weight=100.0)
    bound.differentiable_loss(vae.model, vae.guide, x)  # the first look runs the pair aside
    losses = []
    for b in (plain, bound):
        pyro.set_rng_seed(3)
        losses.append(b.differentiable_loss(vae.model, vae.guide, x))
    fake = reconstruction(vae, x, 3)
    adv = 100 * bce(dis(fake), torch.ones(20, 1, 3, 3))
    torch.testing.assert_close(losses[1] - losses[0], 20 * adv, rtol=1e-4, atol=1e-3)
    expected = 100 * bce(dis(x), torch.ones(20, 1, 3, 3)) + 100 * bce(dis(fake), torch.zeros(20, 1, 3, 3))
    torch.testing.assert_close(bound.discriminator_loss(), expected, rtol=1e-6, atol=1e-6)
    parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    found = torch.autograd.grad(losses[1] - losses[0], parameters)
    for one, other in zip(found, torch.autograd.grad(20 * adv, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("base", [Trace_ELBO, TraceMeanField_ELBO, AggregatePosterior_ELBO])
def test_R7_block_purity(base):
    vae, dis, x = conv_vae(), patches(norm=True), faces()
    bound = Adversarial_ELBO(base(), dis, optim=adam)
    for p in dis.parameters():
        p.grad = torch.ones_like(p)
    before = state(dis)
    bound.differentiable_loss(vae.model, vae.guide, x).backward()
    assert same(before, state(dis)) and all((p.grad == 1).all() for p in dis.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vae.parameters())
    weights, gradients = state(vae), [p.grad.clone() for p in vae.parameters()]
    bound.discriminator_step()
    assert same(weights, state(vae))
    assert all(torch.equal(p.grad, g) for p, g in zip(vae.parameters(), gradients, strict=True))
    assert not any(torch.equal(before[n], t) for n, t in state(dis).items() if n.endswith("weight"))
    assert not torch.equal(before["1.running_mean"], dis[1].running_mean)  # its own step moves its statistics
    assert before["0.weight"].requires_grad is False and all(p.requires_grad for p in dis.parameters())


def test_one_pass_of_the_decoder():
    vae, calls = conv_vae(), []
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    bound = Adversarial_ELBO(AggregatePosterior_ELBO(), patches())
    for wanted in (None, 1, 1):
        calls.clear()
        bound.differentiable_loss(vae.model, vae.guide, faces())
        bound.discriminator_step()
        assert wanted is None or len(calls) == wanted
    assert bound._images is None and bound._models.recorder.found == {} and bound._guides.recorder.found == {}


def by_hand(steps=6):
    vae, dis, x = conv_vae(), patches(), faces(8)
    bound = Adversarial_ELBO(AggregatePosterior_ELBO(), dis, weight=2.0, optim=adam)
    optimizer = adam(vae.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        (bound.differentiable_loss(vae.model, vae.guide, x) / 8).backward()
        optimizer.step()
        losses.append(bound.discriminator_step())
    return vae, dis, torch.stack(losses)


def test_loops_by_hand_and_by_svi():
    vae, dis, losses = by_hand()
    assert losses.isfinite().all() and not losses.requires_grad
    assert not same(state(dis), state(patches())) and not same(state(vae), state(conv_vae()))
    with pytest.raises(ValueError, match="Compute the pair's loss first"):
        bound = Adversarial_ELBO(Trace_ELBO(), dis)
        bound.discriminator_step()
    before, svi = state(dis), SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), bound)
    svi.step(faces(8))
    assert same(before, state(dis))
    bound.discriminator_step()
    assert not same(before, state(dis))


def test_the_discriminator_learns_and_the_pair_follows():
    """Against a pair that does not move, the discriminator finds the difference, and its term moves the mean."""
    torch.manual_seed(0)
    x = torch.randn(64, 3) + 2.0
    vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(1.0), 2)
    bound = Adversarial_ELBO(Trace_ELBO(), MLP(3, [8], 1), weight=1.0, optim=adam)
    losses = []
    for _ in range(150):
        bound.differentiable_loss(vae.model, vae.guide, x)
        losses.append(bound.discriminator_step().item())
    assert losses[0] > 1.0 and losses[-1] < 0.3
    bias = list(vae.decoder.parameters())[-1]
    gradient = []
    for b in (bound, Trace_ELBO()):
        pyro.set_rng_seed(0)
        gradient.append(torch.autograd.grad(b.differentiable_loss(vae.model, vae.guide, x), bias)[0])
    assert (gradient[0] - gradient[1]).sum() < 0  # upwards, towards the data


# -- fit --------------------------------------------------------------------------------------------------------------


def run(tmp, *, epochs=4, resume=False, data=None, **options):
    vae, dis = conv_vae(), patches(norm=True)
    bound = Adversarial_ELBO(AggregatePosterior_ELBO(), dis, weight=3.0, optim=adam)
    history = fit(
        vae.model, vae.guide, faces(22) if data is None else data, valid=faces(9), loss=bound, optim=adam,
        epochs=epochs, batch_size=8, seed=2, checkpoint=tmp, resume=resume, progress=False, **options,
    )  # fmt: skip
    return vae, dis, bound, history


def test_fit_trains_both_and_resumes_exactly(tmp_path):
    whole, dis, bound, history = run(tmp_path / "whole")
    assert not same(state(dis), state(patches(norm=True))) and len(history.train) == 4
    steps = {int(s["step"]) for s in bound.optimizer.state_dict()["state"].values()}
    assert steps == {8}  # 22 rows in batches of 8, the short one left out, 4 epochs
    run(tmp_path / "run", epochs=2)
    resumed, its_dis, its_bound, its_history = run(tmp_path / "run", resume=True)
    assert same(state(resumed), state(whole)) and same(state(its_dis), state(dis))
    assert its_history.train == history.train and its_history.valid == history.valid
    one, other = (b.optimizer.state_dict()["state"] for b in (bound, its_bound))
    assert all(torch.equal(one[i][k], other[i][k]) for i in one for k in one[i])


class Blow(Callback):
    """Makes the decoder's weights NaN before some steps, and remembers the discriminator that each step has found."""

    def __init__(self, vae, bound, steps):
        self.vae, self.bound, self.steps, self.found = vae, bound, steps, []

    def handler(self, run):
        optimizer = self.bound.optimizer
        moments = copy.deepcopy(optimizer.state_dict()["state"])
        self.found.append((state(self.bound.discriminator), moments, optimizer.param_groups[0]["lr"]))
        if run.step in self.steps:
            for p in self.vae.decoder.parameters():
                p.data.fill_(math.nan)


def test_a_rollback_takes_the_discriminator_back():
    vae, dis = conv_vae(), patches(norm=True)
    bound = Adversarial_ELBO(AggregatePosterior_ELBO(), dis, weight=3.0, optim=adam)
    blow = Blow(vae, bound, [1, 5, 6])
    history = fit(
        vae.model, vae.guide, faces(32), loss=bound, optim=adam, epochs=3, batch_size=8, seed=2, on_nan="rollback",
        callbacks=[blow], progress=False,
    )  # fmt: skip
    assert history.skipped == 3 and all(t.isfinite().all() for t in state(dis).values())
    assert [found[2] for found in blow.found] == pytest.approx([1e-2] * 2 + [5e-3] * 4 + [2.5e-3] + [1.25e-3] * 5)
    back_to = {2: 0, 6: 4, 7: 4}  # the steps after a rollback find what the epoch has started with
    for step in range(1, 12):
        (now, moments, _), (then, its_moments, _) = blow.found[step], blow.found[back_to.get(step, step - 1)]
        assert same(now, then) == (step in back_to)
        if step in back_to:
            assert moments.keys() == its_moments.keys() and all(same(m, its_moments[i]) for i, m in moments.items())
    assert blow.found[0][1] == {} and blow.found[4][1] != {}


def test_images_with_a_nan_leave_the_discriminator_as_it_is():
    vae, dis, x = conv_vae(), patches(norm=True), faces()
    bound = Adversarial_ELBO(Trace_ELBO(), dis, optim=adam)
    bound.differentiable_loss(vae.model, vae.guide, x)
    bound.discriminator_step()
    before = state(dis)
    x[3, 0, 2, 2] = math.nan
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN"):  # as in a run, behind its first step
        bound.differentiable_loss(vae.model, vae.guide, x)
    assert not bound.discriminator_step().isfinite() and same(before, state(dis))
    bound.differentiable_loss(vae.model, vae.guide, faces())
    assert bound.discriminator_step().isfinite() and not same(before, state(dis))


def test_other_callbacks_beside_it(tmp_path):
    _, _, _, history = run(tmp_path / "run", callbacks=[EarlyStopping(3)])
    _, _, _, again = run(tmp_path / "run", epochs=5, resume=True, callbacks=[EarlyStopping(3)])
    assert again.train[:4] == history.train and len(again.train) == 5
    vae, dis = conv_vae(), patches()
    outer = MutualPosterior_ELBO(Adversarial_ELBO(Trace_ELBO(), dis, optim=adam), eta=1.0)
    before = state(dis)
    fit(vae.model, vae.guide, faces(), loss=outer, epochs=1, batch_size=8, seed=0, progress=False)
    assert not same(before, state(dis))  # its steps are taken under another bound as well


def test_evaluation_and_checks_change_nothing():
    vae, dis, x = conv_vae(), patches(norm=True), faces()
    bound = Adversarial_ELBO(Trace_ELBO(), dis, weight=10.0)
    before = state(dis)
    values = [evaluate(vae.model, vae.guide, x, loss=bound) for _ in range(2)]
    plain = evaluate(vae.model, vae.guide, x)
    assert values[0] == values[1] and dis.training
    assert values[0] - plain == pytest.approx(10 * math.log(2), rel=0.3)
    assert check(vae.model, vae.guide, x, loss=bound).ok
    losses = []
    for b in (bound, Trace_ELBO()):
        pyro.set_rng_seed(3)
        losses.append(b.loss(vae.model, vae.guide, x))
    assert same(before, state(dis)) and all(p.grad is None for p in dis.parameters())
    dis.eval()  # as the loss had it: no dropout, running statistics
    adv = 10 * bce(dis(reconstruction(vae, x, 3)), torch.ones(20, 1, 3, 3))
    assert losses[0] - losses[1] == pytest.approx(20 * adv.item(), rel=1e-4)


def test_a_bad_step_is_left_out():
    vae, dis, x = conv_vae(), patches(), faces(8)
    bound = Adversarial_ELBO(Trace_ELBO(), dis, optim=adam)
    bound.differentiable_loss(vae.model, vae.guide, x)
    before, bound._images = state(dis), type(bound._images)(bound._images.real, bound._images.fake * math.nan)
    assert bound.discriminator_step().isnan() and same(before, state(dis))
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, math.inf])
    step_if_finite(torch.optim.SGD([p], lr=1.0), torch.zeros(()))
    assert (p == 0).all()
    p.grad = torch.ones(2)
    step_if_finite(torch.optim.SGD([p], lr=1.0), torch.zeros(()))
    assert (p == -1).all()


def test_subsampling_plates_scale_the_term_like_the_bound():
    torch.set_default_dtype(torch.float64)
    x, net, dis = torch.randn(8, 3), nn.Linear(3, 2), MLP(3, [4], 1)

    def model(x):
        with pyro.plate("data", 40, subsample_size=8):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([8, 3]).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", 40, subsample_size=8):
            pyro.sample("z", dist.Normal(net(x), 1e-9).to_event(1))

    bound = Adversarial_ELBO(TraceMeanField_ELBO(), dis, weight=2.0)
    bound.loss(model, guide, x)
    added = bound.differentiable_loss(model, guide, x) - TraceMeanField_ELBO().differentiable_loss(model, guide, x)
    fake = net(x).sum(-1, keepdim=True).expand(8, 3)
    torch.testing.assert_close(added, 40 * 2 * bce(dis(fake), torch.ones(8, 1)), rtol=1e-5, atol=1e-5)


class Joined(nn.Module):
    """A network of one input, given several."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *inputs):
        return self.net(concatenate(inputs))


class ThenJoined(nn.Module):
    """A head of what a network says of the image, and of the covariate."""

    def __init__(self, net, head):
        super().__init__()
        self.net, self.head = net, head

    def forward(self, x, c):
        return self.head(self.net(x), c)


# -- bounds and pairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        AggregatePosterior_ELBO,
        lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
        lambda: Trace_ELBO(num_particles=2),
        lambda: ImportanceWeighted_ELBO(3),
        lambda: FreeBits_ELBO(0.1),
    ],
)
@pytest.mark.parametrize("pair", ["mlp", "conv", "conditional_mlp", "conditional_conv"])
def test_any_bound_and_pair(base, pair):
    torch.manual_seed(0)
    if pair == "conv":
        vae, dis, args = conv_vae(), patches(), (faces(),)
    elif pair == "mlp":
        vae = VAE(NormalHead(4, 2), MLP(2, [5], 4), GaussianLikelihood(0.5), 2)
        dis, args = MLP(4, [5], 1), (torch.randn(20, 4),)
    elif pair == "conditional_conv":
        encoder = ThenJoined(ConvEncoder(SHAPE, [2], 6), NormalHead(6 + 3, 2))
        decoder = Joined(ConvDecoder(2 + 3, [2], SHAPE))
        vae = ConditionalVAE(encoder, decoder, LaplaceLikelihood(0.5, event_dim=3), 2)
        dis, args = patches(), (faces(), torch.randn(20, 3))
    else:
        prior = NormalHead(3, 2)
        vae = ConditionalVAE(NormalHead(4 + 3, 2), MLP(2 + 3, [5], 4), GaussianLikelihood(0.5), 2, prior=prior)
        dis, args = MLP(4, [5], 1), (torch.randn(20, 4), torch.randn(20, 3))
    bound, before = Adversarial_ELBO(base(), dis, optim=adam), state(dis)
    history = fit(vae.model, vae.guide, args, loss=bound, epochs=1, batch_size=8, seed=0, progress=False)
    assert math.isfinite(history.train[0]) and history.skipped == 0 and not same(before, state(dis))


def test_refusals():
    dis, x = patches(), faces(6)
    for base in (StratifiedMixture_ELBO(), RecursiveMixture_ELBO(), DReG_ELBO(2), MutualPosterior_ELBO(DReG_ELBO(2))):
        with pytest.raises(ValueError, match="no plain draws"):
            Adversarial_ELBO(base, dis)
    with pytest.raises(ValueError, match="RenyiELBO has none"):
        Adversarial_ELBO(RenyiELBO(), dis)
    with pytest.raises(ValueError, match="parameters to train"):
        Adversarial_ELBO(Trace_ELBO(), nn.Flatten())
    with pytest.raises(ValueError, match="weight is that of"):
        Adversarial_ELBO(Trace_ELBO(), dis, weight=-1.0)
    vae = conv_vae()
    with pytest.raises(ValueError, match="'y' is none"):
        Adversarial_ELBO(Trace_ELBO(), dis, site="y").loss(vae.model, vae.guide, x)
    with global_batch(lambda t: torch.stack([t, t])), pytest.raises(ValueError, match="Use one device"):
        Adversarial_ELBO(Trace_ELBO(), dis).differentiable_loss(vae.model, vae.guide, x)

    def two(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for name in ("x", "y"):
                pyro.sample(name, dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 3]).to_event(1), obs=x)

    def q(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    flat = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"one of several.*\['x', 'y'\]"):
        Adversarial_ELBO(Trace_ELBO(), MLP(3, [], 1)).loss(two, q, flat)
    assert math.isfinite(Adversarial_ELBO(Trace_ELBO(), MLP(3, [], 1), site="y").loss(two, q, flat))


def test_enumerated_latents_are_refused():
    dis = MLP(3, [], 1)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(y.float().unsqueeze(-1).expand(*y.shape, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(4))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    bound = Adversarial_ELBO(TraceEnum_ELBO(max_plate_nesting=1), dis)
    with torch.no_grad(), pytest.raises(ValueError, match="enumerated latent has no one draw"):
        bound.loss(model, guide, torch.randn(5, 3))
