"""Facts about Pyro's parameter store and modules. Each test says who relies on its fact."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

X = torch.ones(4, 2)


def empty(x):
    """A guide for a model without latents."""


class Model(PyroModule):
    """A plain network in a PyroModule."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.net(x), 1.0).to_event(1), obs=x)


def program_of(net):
    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

    return model


def train(model, steps=3):
    svi = SVI(model, empty, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    return [svi.step(X) for _ in range(steps)]


def test_module_registers_its_parameters_in_the_global_store():
    """programs: parameters are kept out of the store while a pair runs."""
    net = nn.Linear(2, 2)
    poutine.trace(program_of(net)).get_trace(X)
    store = pyro.get_param_store()
    assert set(store.keys()) == {"net$$$weight", "net$$$bias"}
    assert store._params["net$$$weight"] is net.weight


def test_second_module_under_a_name_does_not_train_and_nobody_warns():
    """nn.Program: every instance has a name of its own for this reason."""
    train(program_of(nn.Linear(2, 2)))
    second = nn.Linear(2, 2)
    before = second.weight.detach().clone()
    train(program_of(second))
    assert torch.equal(second.weight, before)


def test_second_module_trains_after_the_store_is_cleared():
    """programs: the store is put aside, not the module changed."""
    train(program_of(nn.Linear(2, 2)))
    pyro.clear_param_store()
    second = nn.Linear(2, 2)
    before = second.weight.detach().clone()
    train(program_of(second))
    assert not torch.equal(second.weight, before)


def test_a_handler_that_sets_the_value_of_a_param_statement_bypasses_the_store():
    """programs: ``ModuleParameters`` gives ``pyro.module`` the module's own parameters."""
    mine = nn.Parameter(torch.ones(2))

    class Giving(poutine.messenger.Messenger):
        def _pyro_param(self, msg):
            msg["value"] = mine

    with Giving():
        assert pyro.param("name", torch.zeros(2)) is mine
    assert "name" not in pyro.get_param_store()


def test_module_gives_its_parameters_to_param_statements_as_second_argument():
    """programs: how a handler tells a module's parameter from a free-standing one."""
    seen = []

    class Noting(poutine.messenger.Messenger):
        def _pyro_param(self, msg):
            seen.append(msg["args"][1])

    net = nn.Linear(2, 2)
    with Noting():
        pyro.module("net", net)
        pyro.param("free", torch.zeros(()))
    assert [isinstance(value, nn.Parameter) for value in seen] == [True, True, False]


def test_store_omits_buffers():
    """infer: weights are saved from the modules' state_dict."""
    net = nn.BatchNorm1d(2)
    pyro.module("net", net)
    assert set(pyro.get_param_store().keys()) == {"net$$$weight", "net$$$bias"}
    assert "running_mean" in net.state_dict()


def test_store_of_a_module_is_no_file_that_loads_with_weights_only(tmp_path):
    """infer: the store is no checkpoint."""
    pyro.module("net", nn.Linear(2, 2))
    pyro.get_param_store().save(str(tmp_path / "store"))
    with pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(tmp_path / "store", weights_only=True)


def test_store_gives_and_takes_its_state():
    """programs: the state is put aside with get_state, and back with clear and set_state."""
    store = pyro.get_param_store()
    pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
    state = store.get_state()
    assert state.keys() == {"params", "constraints"}

    store.clear()
    assert len(store) == 0
    store.set_state(state)
    assert torch.equal(pyro.param("scale"), torch.ones(2))


def test_param_value_knows_its_unconstrained_leaf():
    """programs: the leaves that an optimiser moves."""
    value = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
    assert value.unconstrained().is_leaf and value.unconstrained().tolist() == [0.0, 0.0]


def test_pyro_module_names_its_parameters_by_its_own_name():
    """nn.Program: unique names make unique parameters."""
    model = Model()
    model._pyro_set_supermodule("mine", model._pyro_context)
    model(X)
    assert set(pyro.get_param_store().keys()) == {"mine.net$$$weight", "mine.net$$$bias"}


def test_elbo_module_trains_without_the_store():
    """infer: the way to train with a torch optimiser."""
    model = Model()
    loss = Trace_ELBO()(model, PyroModule[nn.Module]())
    assert {id(p) for p in loss.parameters()} == {id(p) for p in model.parameters()}


def test_local_parameters_leave_the_store_empty():
    """tests of the zoo: the same numbers with ``module_local_params=True``."""
    with pyro.settings.context(module_local_params=True):
        Model()(X)
    assert len(pyro.get_param_store()) == 0


def test_svi_fails_on_local_parameters_of_plain_modules():
    """tests of the zoo: under the setting, pairs are trained by ``fit`` or by hand."""
    with pyro.settings.context(module_local_params=True):
        with pytest.raises(AttributeError, match="unconstrained"):
            train(Model())


def test_local_parameters_refuse_global_statements_inside_a_module():
    """tests of the zoo: a user's function with ``pyro.module`` runs inside our guides."""

    class Guide(PyroModule):
        def forward(self, x):
            program_of(nn.Linear(2, 2))(x)

    with pyro.settings.context(module_local_params=True):
        with pytest.raises(NotImplementedError, match=r"global pyro\.param"):
            Guide()(X)
