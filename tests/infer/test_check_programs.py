"""check never refuses what SVI trains under Pyro's validation, and says what would be silently wrong."""

import functools
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.guide import GuideMessenger
from torch import nn

from pyro_vaes.infer import DReG_ELBO, ImportanceWeighted_ELBO, check, describe, evaluate, fit, scale_latents

N = 12
X = torch.randn(N, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
quick = functools.partial(fit, epochs=1, progress=False, seed=0)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", X.new_zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc + x / 2, 0.5**0.5))


# programs that handle their data themselves


def grey(x):
    logit = pyro.param("logit", X.new_zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(logit, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z, validate_args=False), obs=x)


def with_gaps(x):
    seen = x.isfinite()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(X.new_zeros(()), 1.0))
        with poutine.mask(mask=seen):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.where(seen, x, 0.0))


def of_bytes(x):
    return model(x.double() / 255)


def short_guide(x):
    loc = pyro.param("loc", X.new_zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, X.new_ones(len(x))))


DATA = {
    "grey pixels without validation": (grey, X.sigmoid()),
    "NaN that are masked": (with_gaps, torch.where(X > 0, X, torch.nan)),
    "bytes that are divided": (of_bytes, torch.arange(N, dtype=torch.uint8)),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_that_a_program_handles_itself(kind):
    program, x = DATA[kind]
    assert check(program, short_guide, x).problems == ()
    assert len(quick(program, short_guide, x)) == 1


def test_grey_pixels_with_validation_are_refused_as_svi_does():
    def strict(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(X.new_zeros(()), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    svi = SVI(strict, short_guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ValueError):
        svi.step(X.sigmoid())
    with pytest.raises(ValueError, match="grey but the likelihood is binary"):
        check(strict, short_guide, X.sigmoid()).raise_if_fatal()


# guides and plates of other kinds


class Messenger(GuideMessenger, nn.Module):
    def __init__(self, program):
        nn.Module.__init__(self)
        GuideMessenger.__init__(self, program)

    def get_posterior(self, name, prior):
        loc = pyro.param("loc", X.new_zeros(()))
        (x,) = self.args_kwargs[0]
        return dist.Normal(loc + x / 2, 0.5**0.5)


class Function(GuideMessenger):
    def get_posterior(self, name, prior):
        return dist.Normal(pyro.param("loc", X.new_zeros(())), 0.5**0.5)


class Easy(EasyGuide):
    def guide(self, x):
        loc = pyro.param("loc", X.new_zeros(()))
        with self.plate("data", len(x)):
            self.group(match="z").sample("joint", dist.Normal(loc + x.unsqueeze(-1) / 2, 0.5).to_event(1))


def test_guides_of_pyro_are_not_refused():
    assert check(model, Easy(model), X).ok
    assert len(quick(model, Easy(model), X)) == 1
    for program in (Function(model), Messenger(model)):
        assert check(model, program, X).ok
        assert len(quick(model, program, X)) == 1


def test_a_guide_that_observes_is_flagged():
    """Pyro subtracts the observation's density, so that the likelihood cancels."""
    report = check(model, Function(model), X)
    assert report.ok and "The guide observes 'x'" in str(report)

    hidden = poutine.block(Function(model), hide_fn=lambda site: site.get("is_observed", False))
    assert check(model, hidden, X).problems == ()


def test_dimensions_between_plates_are_not_refused():
    """Pyro's validation leaves the undeclared dimension -1 alone; the rows are those of the plate."""

    def columns(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.expand(len(x), 3), 1.0), obs=x.unsqueeze(-1).expand(-1, 3))

    def columns_guide(x):
        loc = pyro.param("loc", x.new_zeros(()))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(loc + x.unsqueeze(-1) * 0.75, 0.5))

    assert check(columns, columns_guide, X).problems == ()
    z = 0.75 * X.unsqueeze(-1) + 0.5 * torch.randn(N, 20000, dtype=torch.float64)
    log_q = dist.Normal(0.75 * X.unsqueeze(-1), 0.5).log_prob(z)
    log_x = dist.Normal(z, 1.0).log_prob(X.unsqueeze(-1))
    wanted = -(dist.Normal(0.0, 1.0).log_prob(z) + 3 * log_x - log_q).mean()
    got = evaluate(columns, columns_guide, X, loss=Trace_ELBO(num_particles=2000, vectorize_particles=False))
    assert got == pytest.approx(wanted.item(), abs=0.02)


def test_undeclared_dimensions_are_refused_as_svi_does():
    def bare(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def bare_guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(())), 1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        SVI(bare, bare_guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(X)
    with pytest.raises(ValueError, match=r"'x' lies in no plate.*with pyro.plate"):
        quick(bare, bare_guide, X)


def test_one_vector_in_no_plate_is_not_refused():
    def one(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.expand(len(x)), 1.0).to_event(1), obs=x)

    def one_guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(())) + x.sum() / (N + 1), (N + 1) ** -0.5))

    covariance = torch.ones(N, N).double() + torch.eye(N)
    evidence = dist.MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(X)
    assert check(one, one_guide, X).ok
    assert evaluate(one, one_guide, X) == pytest.approx(-evidence.item(), abs=1e-9)


def test_enumerated_programs_are_looked_at_enumerated():
    """The program runs only where its site is enumerated, along a dimension of its own."""

    def mixture(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]).double())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(X.new_ones(2) / 2), infer={"enumerate": "parallel"})
            if c.shape != (2, 1):
                raise RuntimeError("not enumerated")
            pyro.sample("x", dist.Normal(locs[c], 1.0), obs=x)

    bound = TraceEnum_ELBO(max_plate_nesting=1)
    assert check(mixture, lambda x: None, X, loss=bound).ok
    assert len(quick(mixture, lambda x: None, X, loss=bound)) == 1


# what would be silently wrong


def masked(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def masked_by_distribution(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0).mask(x > 0))
        pyro.sample("x", dist.Normal(z, 1.0).mask(x > 0), obs=x)


def masked_guide(x):
    with poutine.mask(mask=x > 0):
        guide(x)


@pytest.mark.parametrize("program", [masked, masked_by_distribution])
def test_a_mask_on_one_side_is_said(program):
    report = check(program, guide, X)
    assert report.ok and "'z' is masked in the model, but not in the guide" in str(report)
    assert check(program, masked_guide, X).problems == ()
    assert "'z' is masked in the guide, but not in the model" in str(check(model, masked_guide, X))


def with_global(x, size=None):
    plate = pyro.plate("data", len(x)) if size is None else pyro.plate("data", size, subsample_size=len(x))
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with plate:
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def global_guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", x.new_zeros(())), 1.0))


def test_a_global_under_an_unscaled_plate_is_said(caplog):
    report = check(with_global, global_guide, X)
    assert report.ok and "counts once for each batch" in str(report) and "subsample_size=len(x)" in str(report)
    assert check(functools.partial(with_global, size=100), global_guide, X).problems == ()

    quick(with_global, global_guide, X, batch_size=N)  # one batch: there it is right
    assert "counts once for each batch" not in caplog.text
    quick(with_global, global_guide, X, batch_size=4)
    assert "counts once for each batch" in caplog.text


# P11: bounds without a KL leave scales out, and say so


@pytest.mark.parametrize("kind", [ImportanceWeighted_ELBO, DReG_ELBO])
def test_p11_scales_without_effect_are_said(kind, caplog):
    weighed = scale_latents(1e-3)
    report = check(weighed(model), weighed(guide), X, loss=kind(3))
    assert report.ok and re.search(rf"{kind.__name__} has no KL term.*'z': 0.001.*no effect", str(report))
    assert check(weighed(model), weighed(guide), X, loss=Trace_ELBO()).problems == ()
    assert check(model, guide, X, loss=kind(3)).problems == ()

    caplog.clear()
    bound, values = kind(3), []
    for beta in (1e-3, 1e-3, 1.0):
        pyro.set_rng_seed(0)
        with scale_latents(beta):
            values.append(bound.loss(model, guide, X))
    assert values[0] == values[1] == values[2]
    assert caplog.text.count("have no effect") == 1 and "'z'" in caplog.text


def test_p11_the_scale_of_a_subsampling_plate_is_no_weight(caplog):
    def rows(x):
        return pyro.plate("data", 100, subsample_size=len(x))

    def subsampled(x):
        with rows(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def subsampled_guide(x):
        with rows(x):
            pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(())) + x / 2, 0.5**0.5))

    assert check(subsampled, subsampled_guide, X, loss=ImportanceWeighted_ELBO(3)).problems == ()
    wanted = -100 * dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(X).mean().item()
    assert ImportanceWeighted_ELBO(3).loss(subsampled, subsampled_guide, X) == pytest.approx(wanted, abs=1e-9)
    assert "no effect" not in caplog.text


# describe


def test_describe_shows_what_each_site_is():
    class Ruled:
        def __call__(self, x):
            masked_guide(x)

        def describe_rule(self, name):
            return f"half of x for {name}"

    found = describe(masked, Ruled(), X)
    rows = {(row.program, row.name): row for row in found.rows}
    z = rows["model", "z"]
    assert (z.role, z.shape, z.plates, z.scale, z.per) == ("latent", "(12) ()", "data[12]", 1.0, "data")
    assert z.mask == f"{int((X > 0).sum())} of 12" and rows["model", "x"].role == "observed"
    assert rows["guide", "z"].rule == "half of x for z" and "half of x for z" in str(found)
    assert found.unit == "data" and "per row of the plate 'data'" in repr(found)


def test_describe_tells_globals_and_crossed_plates():
    found = describe(functools.partial(with_global, size=100), global_guide, X)
    w, x = found.rows[:2]
    assert (w.per, x.per, x.plates, x.scale) == ("all data", "data", "data[12 of 100]", 1.0)

    def crossed(x):
        users, items = pyro.plate("users", 4, dim=-2), pyro.plate("items", 3, dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
        with items:
            v = pyro.sample("v", dist.Normal(x.new_zeros(()), 1.0))
        with users, items:
            pyro.sample("x", dist.Normal(u + v, 1.0), obs=x.reshape(4, 3))

    found = describe(crossed, poutine.block(crossed, hide=["x"]), X)
    assert found.unit is None and found.candidates == ("users", "items") and "pass unit=" in str(found)
    assert describe(crossed, poutine.block(crossed, hide=["x"]), X, unit="items").unit == "items"
