"""Facts about torch's capture, functional calls and generators. Each test says who relies on it."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, trace_elbo
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module


class VAE(nn.Module):
    """A VAE in Pyro alone."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.fixture
def on_device(monkeypatch):
    """The two functions by which Pyro's bound reads numbers into Python, out of the way."""
    monkeypatch.setattr(trace_elbo, "torch_item", lambda value: value)
    monkeypatch.setattr(trace_elbo, "warn_if_nan", lambda *_, **__: None)


def binary(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((6, 5), 0.4), generator=generator)


def test_make_fx_captures_loss_and_gradients_of_a_pyro_vae(on_device):
    """infer: the captured engine of fit runs such a graph on batch after batch."""
    vae, bound = VAE(), Trace_ELBO()
    parameters = list(vae.parameters())

    def loss_and_gradients(x):
        loss = bound.differentiable_loss(vae.model, vae.guide, x)
        return loss, *torch.autograd.grad(loss, parameters)

    with pyro.validation_enabled(False):
        graph = make_fx(loss_and_gradients, tracing_mode="real")(binary(0))
        for seed in (1, 2):
            pyro.set_rng_seed(seed)
            wanted = loss_and_gradients(binary(seed))
            pyro.set_rng_seed(seed)
            found = graph(binary(seed))
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_captured_graph_follows_its_parameters(on_device):
    """infer: parameters in a closure are shared with the graph, not copied."""
    vae, bound = VAE(), Trace_ELBO()
    with pyro.validation_enabled(False):
        graph = make_fx(lambda x: bound.differentiable_loss(vae.model, vae.guide, x))(binary(0))
        before = graph(binary(0))
        with torch.no_grad():
            vae.decoder.bias.add_(5.0)
        assert (graph(binary(0)) - before).abs() > 1


@pytest.mark.parametrize("read", [torch.Tensor.item, bool])
def test_capture_raises_where_a_number_is_read_into_python(read):
    """infer: what a captured step must not do is told by an error."""

    def function(x):
        return x * 2 if read(x.sum()) else x

    with pytest.raises(Exception, match=r"data-dependent|item|Cannot|symbolic|proxy|guard"):
        make_fx(function, tracing_mode="real")(torch.ones(3))


def test_capture_bakes_in_numbers_of_pythons_generator():
    """infer: only torch's generators are seen; programs that draw elsewhere run eagerly."""
    graph = make_fx(lambda x: x * random.random())(torch.ones(()))
    assert graph(torch.ones(())) == graph(torch.ones(()))


def test_capture_updates_buffers_in_the_graph():
    """infer: running statistics of batch norm move with each run of a graph."""
    norm = nn.BatchNorm1d(2)
    graph = make_fx(norm)(torch.randn(8, 2))
    before = norm.running_mean.clone()
    graph(torch.full((8, 2), 3.0))
    assert not torch.equal(norm.running_mean, before)


def test_reparametrize_module_puts_other_tensors_in_for_a_while():
    """programs: a program that is no module's forward runs on other parameters."""
    net = nn.Linear(2, 2)
    weight = net.weight
    with _reparametrize_module(net, {"weight": torch.zeros(2, 2), "bias": torch.ones(2)}):
        assert net(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]
    assert net.weight is weight


def test_functional_call_takes_detached_parameters():
    """infer: the discriminator's gradient is left out of the pair's loss."""
    net, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    state = {name: p.detach() for name, p in net.named_parameters()}
    torch.func.functional_call(net, state, (x,)).sum().backward()
    assert x.grad is not None and net.weight.grad is None


def test_pyros_generator_state_is_that_of_torch_numpy_and_random():
    """programs: a run aside gives back all generators."""
    state = pyro.util.get_rng_state()
    assert state.keys() == {"torch", "random", "numpy"}
    drawn = torch.rand(()), random.random(), np.random.rand()
    pyro.util.set_rng_state(state)
    assert drawn == (torch.rand(()), random.random(), np.random.rand())


def test_pyros_seed_seeds_torch_numpy_and_random():
    """infer: the seed of fit gives the same run."""
    draws = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        draws.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]


def test_state_of_torchs_default_generator_is_a_byte_tensor():
    """infer: checkpoints hold it."""
    state = torch.get_rng_state()
    assert state.dtype == torch.uint8
    first = torch.rand(3)
    torch.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.default_generator.get_state(), torch.get_rng_state())


def test_forward_mode_goes_through_a_traced_pyro_program():
    """guides: the Laplace guide pushes tangents through the program."""
    decoder = nn.Linear(2, 3)

    def mean(z):
        def program():
            with pyro.plate("data", len(z)):
                pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1))

        with poutine.block():
            trace = poutine.trace(program).get_trace()
        return trace.nodes["x"]["fn"].base_dist.loc

    with pyro.validation_enabled(False):
        _, tangent = torch.func.jvp(mean, (torch.zeros(4, 2),), (torch.ones(4, 2),))
    torch.testing.assert_close(tangent, decoder.weight.sum(1).expand(4, 3))
