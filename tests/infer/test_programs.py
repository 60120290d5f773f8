"""What is found by reading a program: its modules wherever they hide, and how many arguments it takes."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vaes.infer import FreeBits_ELBO, evaluate, fit, scale_latents
from pyro_vaes.nn import MLP, Chain, NormalHead
from pyro_vaes.programs.pair import Pair
from pyro_vaes.programs.reach import modules_of, num_positional
from tests.infer.pairs import D, binary, binary_vae, function_pair, same, weights

GLOBAL = nn.BatchNorm1d(D)


class Owner:
    """Not a module, but it holds some."""

    def __init__(self):
        self.parts = {"decoder": nn.Linear(2, D)}

    def method(self, x):
        return self.parts["decoder"](x)

    __call__ = method


def with_global(x):
    return GLOBAL(x)


def through_another(x):
    return with_global(x)


def programs():
    net, nets = nn.Linear(2, D), [nn.Linear(2, 2), nn.Linear(2, 3)]
    vae, owner = binary_vae(), Owner()
    return {
        "module": (net, {"it": net}),
        "method of a module": (vae.model, {"it": vae}),
        "closure": (lambda x: net(x), {"it.net": net}),
        "list in a closure": (lambda x: nets, {"it.nets.0": nets[0], "it.nets.1": nets[1]}),
        "global": (with_global, {"it.GLOBAL": GLOBAL}),
        "function of a function": (through_another, {"it.with_global.GLOBAL": GLOBAL}),
        "partial": (
            functools.partial(lambda net, x, *, other: None, net, other=nets[0]),
            {"it": net, "it.other": nets[0]},
        ),
        "handler": (scale_latents(0.5)(vae.model), {"it": vae}),
        "two handlers": (pyro.poutine.scale(scale_latents(0.5)(lambda x: net(x)), scale=2.0), {"it.net": net}),
        "method of an object": (owner.method, {"it.parts.decoder": owner.parts["decoder"]}),
        "object that can be called": (owner, {"it.parts.decoder": owner.parts["decoder"]}),
        "nothing": (lambda x: torch.zeros(2), {}),
    }


@pytest.mark.parametrize("kind", programs())
def test_modules_wherever_they_hide(kind):
    program, wanted = programs()[kind]
    found = dict(modules_of(program, "it"))
    assert found.keys() == wanted.keys()
    if "Owner" not in str(program) and kind == "global":
        assert found["it.GLOBAL"] is GLOBAL


def test_a_variable_without_a_value_does_not_matter():
    def model(x):
        return later

    assert modules_of(model, "it") == []
    later = 1


def test_arguments():
    vae = binary_vae()
    cases = {
        vae.model: 1,
        scale_latents(0.5)(vae.model): 1,
        (lambda x, y, *, z=1: None): 2,
        (lambda *args: None): None,
        functools.partial(lambda x, y, c: None, c=0): 2,
        nn.Linear(2, 2): 1,
        max: None,
    }
    assert all(num_positional(program) == wanted for program, wanted in cases.items())
    batch = (torch.zeros(3), torch.ones(3))
    assert len(Pair(vae.model, vae.guide).arguments(batch)) == 1


def test_modules_that_hide_are_evaluated_and_come_back():
    """A BatchNorm in a dictionary of an object: evaluation must neither use batch statistics nor move them."""

    class Program:
        def __init__(self):
            self.nets = {
                "norm": nn.BatchNorm1d(D),
                "encoder": Chain(MLP(D, [8], 8), NormalHead(8, 2)),
                "decoder": MLP(2, [], D),
            }

        def model(self, x):
            pyro.module("decoder", self.nets["decoder"])
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.nets["decoder"](z)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.nets["encoder"])
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.nets["encoder"](self.nets["norm"](x)))

    program, x = Program(), binary()
    before = weights(program.nets["norm"])
    value = evaluate(program.model, program.guide, x)
    assert same(weights(program.nets["norm"]), before) and program.nets["norm"].training
    fit(program.model, program.guide, x, epochs=1, progress=False, seed=0)
    assert program.nets["norm"].num_batches_tracked == 1  # one step, and no dry run
    assert value > 0


def test_our_bounds_under_svi():
    """SVI takes our bounds as well: one step moves what a step of Pyro's own bound moves."""
    x, ends = binary(), []
    for loss in (FreeBits_ELBO(0.0), Trace_ELBO()):
        model, guide, networks = function_pair()
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        value = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), loss).step(x)
        ends.append((value, weights(networks)))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)
    assert all(torch.allclose(ends[0][1][n], ends[1][1][n], atol=1e-6) for n in ends[0][1])
