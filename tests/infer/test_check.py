"""check: every mistake in words that name the cure, before any training; and nothing said about good pairs."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vaes.data import from_tensors
from pyro_vaes.diagnostics import collapse_report, log_likelihood
from pyro_vaes.infer import FreeBits_ELBO, check, evaluate, fit, scale_latents
from pyro_vaes.models import VAE, ConditionalVAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, GaussianLikelihood, NormalHead, OneHot
from tests.infer.pairs import (
    D,
    binary,
    binary_vae,
    exact_linear,
    function_pair,
    hierarchical_vae,
    linear_vae,
    param_pair,
    same,
    weights,
)

quick = functools.partial(fit, epochs=2, batch_size=32, seed=5, progress=False)


def model_of(x, *, z_dim=2, site="z", rows=None, in_plate=True, event=True):
    """A program with one of the usual mistakes."""
    weight = pyro.param("weight", torch.full((2, D), 0.1))
    with pyro.plate("data", len(x) if rows is None else rows):
        z = pyro.sample(site, dist.Normal(torch.zeros(z_dim), 1.0).to_event(1))
        fn = dist.Normal(z[..., :2] @ weight, 1.0)
        if in_plate:
            pyro.sample("x", fn.to_event(1) if event else fn, obs=x)
    if not in_plate:
        pyro.sample("x", fn.to_event(1), obs=x)


def guide_of(x, *, sites=("z",), z_dim=2, rows=None):
    loc = pyro.param("loc", torch.zeros(z_dim))
    with pyro.plate("data", len(x) if rows is None else rows):
        for site in sites:
            pyro.sample(site, dist.Normal(loc, 1.0).to_event(1))


def unobserved(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def raising(x):
    raise ZeroDivisionError("of the user's own")


partial = functools.partial
PROBLEMS = {
    "missing site": (model_of, partial(guide_of, sites=()), r"latent site 'z' has no counterpart in the guide"),
    "extra site": (
        model_of,
        partial(guide_of, sites=("z", "w")),
        r"samples 'w', which the model does not.*is_auxiliary",
    ),
    "misnamed site": (model_of, partial(guide_of, sites=("u",)), r"samples 'u'.*Rename it to one of \['z'\]"),
    "event shapes differ": (model_of, partial(guide_of, z_dim=3), r"(events have shape|\.to_event)"),
    "event_dim missing": (partial(model_of, event=False), guide_of, r"to_event|[Ss]hape mismatch"),
    "plate sizes differ": (
        partial(model_of, rows=7),
        guide_of,
        r"plate 'data' has size 7 in the model but 5 in the guide",
    ),
    "plate size": (partial(model_of, rows=7), partial(guide_of, rows=7), r"7.*5|5.*7"),
    "outside plate": (partial(model_of, in_plate=False), guide_of, r"'x' lies in no plate.*with pyro.plate"),
    "nothing observed": (unobserved, guide_of, r"observes nothing: give one sample statement the data \(obs=x\)"),
    "model raises": (raising, guide_of, r"model fails on this batch: ZeroDivisionError: of the user's own"),
    "guide raises": (model_of, raising, r"guide fails on this batch: ZeroDivisionError"),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_programs_that_do_not_fit(kind):
    model, guide, said = PROBLEMS[kind]
    report = check(model, guide, torch.randn(5, D))
    assert not report.ok
    with pytest.raises(ValueError, match=said):
        quick(model, guide, torch.randn(5, D))
    lines = [f"{'error' if p.fatal else 'note'}: {p.text}" for p in report.problems]
    assert lines and str(report).endswith("\n".join(lines)) and report.problems[0].fatal


def one_paragraph(error):
    return "\n\n" not in str(error) and len(str(error)) > 30


NAN = torch.where(torch.arange(D) == 3, float("nan"), binary(500))
NAN_LATE = binary(500)
NAN_LATE[400, 5] = float("nan")
INFINITE = torch.full((60, D), float("inf"))

BAD_DATA = {
    "wrong width": (torch.zeros(60, D + 3), rf"({D + 3}|{D}).*features|{D + 3}"),
    "images not flattened": (torch.zeros(60, 3, 4), r"[Ff]latten"),
    "NaN pixels": (NAN, r"NaN or infinite.*[Dd]rop those rows, or fill them in"),
    "NaN pixels far from the front": (NAN_LATE, r"1 values that are NaN or infinite"),
    "infinite pixels": (INFINITE, r"NaN or infinite"),
    "bytes": (torch.zeros(60, D, dtype=torch.uint8), r"dtype uint8.*Divide pixels by 255"),
    "grey pixels": (torch.rand(60, D), r"grey pixels.*(binarisation|binarise)"),
    "pixels up to 255": (255 * torch.rand(60, D).round(), r"outside the support.*255"),
    "empty": (torch.zeros(0, D), r"empty.*Is the path, the split or the filter right"),
    "one datum without a batch": (torch.zeros(D), r"no row for each.*x\.unsqueeze\(0\)"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
@pytest.mark.parametrize("part", ["train", "valid"])
def test_bad_data_end_in_one_paragraph_before_training(kind, part):
    vae, (data, said) = binary_vae(), BAD_DATA[kind]
    before = weights(vae)
    arguments = {"data": data} if part == "train" else {"data": binary(), "valid": data}
    with pytest.raises(ValueError, match=said) as error:
        quick(vae.model, vae.guide, **arguments)
    assert one_paragraph(error.value)
    assert same(weights(vae), before)


def conditional_vae():
    encoder = Chain(MLP(D + 4, [8], 8), NormalHead(8, 2))
    return ConditionalVAE(encoder, MLP(2 + 4, [8], D), BernoulliLikelihood(), 2, embedding=OneHot(4))


def test_labels_out_of_range_are_found_wherever_they_are():
    cvae = conditional_vae()
    labels = torch.arange(200) % 4
    quick(cvae.model, cvae.guide, (binary(200), labels), epochs=1)
    before = weights(cvae)
    for wrong in (4, -1):
        labels[150] = wrong
        with pytest.raises(ValueError, match=r"[Ll]abel|class") as error:
            quick(cvae.model, cvae.guide, (binary(200), labels))
        assert one_paragraph(error.value) and same(weights(cvae), before)


@pytest.mark.parametrize("use", [quick, evaluate, log_likelihood, lambda *args: check(*args).raise_if_fatal()])
def test_a_covariate_that_the_data_lack(use):
    cvae, data = conditional_vae(), from_tensors(binary(80), torch.arange(80) % 4)
    said = (
        r"takes \(x, covariate\), but the data give x alone: load_data\(.*labels=True\), or fit\(model, guide, \(x, y"
    )
    for given in (binary(80), data.train):
        with pytest.raises(ValueError, match=said) as error:
            use(cvae.model, cvae.guide, given)
        assert one_paragraph(error.value)
    use(cvae.model, cvae.guide, data.with_labels().train)


@pytest.mark.parametrize("use", [quick, evaluate, log_likelihood, lambda *args: check(*args).raise_if_fatal()])
def test_data_of_another_dtype_than_the_networks(use):
    vae = binary_vae()
    for x, said in [
        (
            binary().double(),
            r"^x is float64, but the networks compute in float32: x\.float\(\), or model\.double\(\)\.$",
        ),
        (binary().long(), r"^x is int64, but the networks compute in float32: x\.float\(\)\.$"),
    ]:
        with pytest.raises(ValueError, match=said):
            use(vae.model, vae.guide, x)
    use(vae.model, vae.guide, binary().double().numpy())  # an array takes torch's default dtype
    with pytest.raises(ValueError, match=r"^x is float32.* in float64: x\.double\(\), or model\.float\(\)\.$"):
        use(vae.double().model, vae.guide, binary())


def test_a_bound_that_is_none():
    vae = binary_vae()
    for use in (quick, evaluate, check):
        for loss, said in [
            (Trace_ELBO, r"loss is the class Trace_ELBO; an instance is wanted: loss=Trace_ELBO\(\)\."),
            (FreeBits_ELBO, r"an instance is wanted: loss=FreeBits_ELBO\(\.\.\.\)\."),
            ("elbo", r"loss is a str; a Pyro ELBO is wanted, such as Trace_ELBO\(\)\."),
        ]:
            with pytest.raises(ValueError, match=said):
                use(vae.model, vae.guide, binary(), loss=loss)


def test_a_head_of_another_length_than_latent_dim():
    head = NormalHead(8, 3)
    vae = VAE(Chain(MLP(D, [8], 8), head), MLP(4, [8], D), BernoulliLikelihood(), latent_dim=4)
    said = (
        "The guide fails on this batch: The encoder returns a distribution over vectors of length 3, but latent_dim is "
        "4: give the head 4 outputs, NormalHead(8, 4)."
    )
    with pytest.raises(ValueError) as error:
        quick(vae.model, vae.guide, binary())
    assert str(error.value) == said
    assert check(vae.model, vae.guide, binary()).problems[0].text == said


def test_what_the_library_says_comes_without_the_table_of_shapes():
    vae = binary_vae()
    wide = VAE(vae.encoder, MLP(2, [8], D + 1), BernoulliLikelihood(), 2)
    with pytest.raises(ValueError, match=r"is the decoder's last layer as wide as the data\?$"):
        quick(wide.model, wide.guide, binary())
    deep = VAE(vae.encoder, MLP(5, [8], D), BernoulliLikelihood(), 2)
    with pytest.raises(ValueError, match=r"takes 5 features, but its inputs have 2 .*give it in_features=2\?$"):
        quick(deep.model, deep.guide, binary())

    class Own(nn.Module):
        def forward(self, params):
            raise ValueError("of the user's own")

    own = VAE(vae.encoder, vae.decoder, Own(), 2)
    with pytest.raises(ValueError, match=r"(?s)model fails on this batch: of the user's own.*Trace Shapes.*z dist"):
        quick(own.model, own.guide, binary())


def test_check_takes_what_fit_takes():
    data = from_tensors(torch.rand(300, D))
    vae = VAE(NormalHead(D, 2), MLP(2, [], D), GaussianLikelihood(), 2)
    loader = DataLoader(TensorDataset(torch.rand(30, D)), batch_size=9, shuffle=True)
    for given, rows in [
        (data, 128),
        (data.test, 30),
        (data.test[:5].numpy(), 5),
        ((data.test[:5].numpy(), np.arange(5)), 5),
        (TensorDataset(torch.rand(20, D)), 20),
        (loader, 9),
        ([(torch.rand(7, D), torch.arange(7))] * 2, 7),
    ]:
        generator = torch.get_rng_state()
        report = check(vae.model, vae.guide, given)
        assert report.problems == () and f"data[{rows}]" in report.table
        assert torch.equal(torch.get_rng_state(), generator)
    for given, said in [("digits", "data is a str"), (None, "data is a NoneType"), (torch.rand(0, D).numpy(), "empty")]:
        with pytest.raises(ValueError, match=said):
            check(vae.model, vae.guide, given)


@pytest.mark.parametrize("use", [evaluate, log_likelihood, collapse_report])
def test_a_whole_data_set_where_one_part_is_wanted(use):
    vae = VAE(NormalHead(D, 2), MLP(2, [], D), GaussianLikelihood(), 2)
    whole = functools.partial(from_tensors, torch.rand(50, D))
    for data, said in [
        (
            whole(name="digits"),
            r"^data is the whole data set 'digits', which has parts: pass one of them, digits\.test, "
            r"digits\.valid or digits\.train\.$",
        ),
        (whole(name="my 50 rows", split=(0, 0.2)), r"'my 50 rows', .* one of them, data\.test or data\.train\.$"),
        (whole(name="rows", split=(0, 0)), r"'rows', which has parts: pass rows\.train\.$"),
    ]:
        with pytest.raises(ValueError, match=said):
            use(vae.model, vae.guide, data)


def test_grey_image_data_under_a_bernoulli():
    grey = from_tensors(torch.rand(80, D))
    with pytest.raises(ValueError, match=r"outside the support of its Bernoulli.*use dynamic binarisation"):
        vae = binary_vae()
        quick(vae.model, vae.guide, grey)


def test_bernoulli_of_a_users_own_names_the_cure_too():
    def model(x):
        logit = pyro.param("logit", torch.zeros(D))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=logit).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"grey but the likelihood is binary: binarise them, or use a continuous"):
        quick(model, guide_of, torch.rand(20, D))


@pytest.mark.parametrize("top_down", [True, False])
def test_mean_field_condition(top_down):
    hvae = hierarchical_vae(top_down=top_down)
    report = check(hvae.model, hvae.guide, binary(), loss=TraceMeanField_ELBO())
    assert report.ok == top_down
    assert check(hvae.model, hvae.guide, binary(), loss=Trace_ELBO()).ok
    if top_down:
        assert len(quick(hvae.model, hvae.guide, binary(), loss=TraceMeanField_ELBO())) == 2
        return
    before = weights(hvae)
    with pytest.raises(ValueError, match=r"analytic KL of 'z_1'.*Use Trace_ELBO, or a top-down guide"):
        quick(hvae.model, hvae.guide, binary(), loss=TraceMeanField_ELBO())
    assert same(weights(hvae), before)


def test_scales_on_one_side_are_noted():
    vae = binary_vae()
    report = check(scale_latents(0.5)(vae.model), vae.guide, binary())
    assert report.ok and r"'z' has scale 0.5 in the model but 1 in the guide" in str(report)
    assert check(scale_latents(0.5)(vae.model), scale_latents(0.5)(vae.guide), binary()).problems == ()
    per_datum = pyro.poutine.scale(scale=torch.rand(96))
    assert check(per_datum(vae.model), per_datum(vae.guide), binary()).problems == ()


def test_unreached_parameters_are_noted(caplog):
    vae = binary_vae()

    def model(x):
        pyro.module("spare", spare)
        return vae.model(x)

    spare = nn.Linear(3, 3)
    report = check(model, vae.guide, binary())
    assert report.ok and "No gradient reaches 2 parameters: model.spare.bias, model.spare.weight" in str(report)
    before = weights(spare)
    quick(model, vae.guide, binary(), optim=functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    assert same(weights(spare), before) and "No gradient reaches 2 parameters" in caplog.text


def test_a_loss_that_is_not_finite():
    class Infinite(nn.Module):
        def forward(self, params):
            return dist.Normal(params, 1e-30).to_event(1)

    torch.manual_seed(0)
    vae = VAE(NormalHead(D, 2), MLP(2, [], D), Infinite(), 2)
    report = check(vae.model, vae.guide, torch.randn(5, D))
    assert not report.ok and "log density" in str(report) and "Is a scale zero" in str(report)


GOOD = {
    "vae": lambda: (binary_vae(), binary()),
    "batch norm": lambda: (binary_vae(middle=nn.BatchNorm1d(8)), binary()),
    "linear": lambda: (linear_vae(), torch.randn(9, D)),
    "hierarchical": lambda: (hierarchical_vae(top_down=False), binary()),
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_pairs(kind):
    vae, x = GOOD[kind]()
    report = check(vae.model, vae.guide, x)
    assert report.ok and report.problems == () and "no problems found" in repr(report)
    assert "Normal" in report.table and f"data[{len(x)}]" in report.table


def test_good_functions():
    for model, guide in (function_pair()[:2], param_pair(), exact_linear()[:2]):
        x = torch.zeros(9, D, dtype=torch.float64 if model.__qualname__.startswith("exact") else None)
        assert check(model, guide, x).problems == ()
    assert check(*param_pair(), torch.zeros(9, D), loss=TraceGraph_ELBO()).problems == ()


def test_check_leaves_no_trace():
    vae = binary_vae(middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.2)))
    modes = [m.training for m in vae.modules()]
    vae.encoder(binary())  # running statistics that are not the initial ones
    pyro.param("there before", torch.ones(2))
    model, guide = param_pair()
    before, store = weights(vae), dict(pyro.get_param_store().items())
    generators = torch.get_rng_state(), pyro.util.get_rng_state()["numpy"][1].copy()
    for loss in (Trace_ELBO(), TraceGraph_ELBO(), TraceMeanField_ELBO()):
        assert check(vae.model, vae.guide, binary(), loss=loss).ok
        assert check(model, guide, torch.randn(5, D, generator=torch.Generator().manual_seed(0)), loss=loss).ok
    assert same(weights(vae), before) and modes == [m.training for m in vae.modules()]
    assert all(p.grad is None for p in vae.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0]) and np.array_equal(
        pyro.util.get_rng_state()["numpy"][1], generators[1]
    )
    assert pyro.get_param_store().keys() == store.keys()
    assert all(pyro.param(n) is v for n, v in store.items())
