"""What a trace's sites are, which plates lie around them, and what their rows stand for."""

import copy
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, trace_elbo
from torch import nn

from pyro_vaes.infer import evaluate, fit
from pyro_vaes.infer.bounds.host_sync import without_host_sync
from pyro_vaes.programs import (
    DENSITIES,
    DRAWN,
    OBJECTIVE,
    VALUED,
    Findings,
    Role,
    UnitCounter,
    bind_keywords,
    dry_run,
    find_data_plate,
    is_dry_run,
    is_latent,
    log_density_sum,
    mark_statements,
    marks,
    plates,
    role,
    run,
    run_pair,
    share_dry_runs,
    sites,
)
from pyro_vaes.programs.structure import batch_structure


def every_role(x):
    """A program with a site of each role, in the order of the roles' names below."""
    with pyro.plate("data", 12, subsample_size=len(x), dim=-1):
        pyro.sample("auxiliary", dist.Normal(0.0, 1.0), infer=marks(auxiliary=True))
        enumerated = dist.Bernoulli(0.5)
        pyro.sample("enumerated", enumerated, infer=marks(enumerated=True))
        z = pyro.sample("latent", dist.Normal(0.0, 1.0))
        pyro.deterministic("deterministic", 2 * z)
        pyro.factor("factor", -z)
        with mark_statements(marks(objective_only=True)):
            pyro.factor("objective only", z)
        pyro.sample("observed", dist.Normal(z, 1.0), obs=x)


def test_every_role_is_told_apart():
    trace = run(every_role, (torch.zeros(3),))
    found = {name: role(site) for name, site in sites(trace, frozenset(Role)).items()}
    assert found.pop("data") is Role.SUBSAMPLING
    assert all(name == found[name].value for name in found) and len(found) == 7


def test_sets_of_roles():
    trace = run(every_role, (torch.zeros(3),))
    assert set(sites(trace, DRAWN)) == {"latent", "auxiliary", "enumerated"}
    assert set(sites(trace, VALUED)) == set(sites(trace, DRAWN)) | {"observed"}
    assert set(sites(trace, DENSITIES)) == set(sites(trace, VALUED)) | {"factor"}
    assert set(sites(trace, OBJECTIVE)) == set(sites(trace, DENSITIES)) | {"objective only"}
    assert set(sites(trace)) == set(sites(trace, OBJECTIVE)) | {"deterministic"}
    latent = {n for n, s in trace.nodes.items() if is_latent(s)}
    assert latent == set(sites(trace, DRAWN))


def test_factors_are_seen_behind_expand_and_mask():
    def program():
        with pyro.plate("data", 4), poutine.mask(mask=torch.arange(4) < 2):
            pyro.factor("f", torch.zeros(4))

    (site,) = sites(run(program)).values()
    assert role(site) is Role.FACTOR


def test_log_densities_are_scaled_and_masked():
    def program(x):
        with pyro.plate("data", 10, subsample_size=2), poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.tensor([-1.0, 2.0])
    total = log_density_sum(run(program, (x,)), DENSITIES)
    torch.testing.assert_close(total, 5 * dist.Normal(0.0, 1.0).log_prob(x[1]))


def test_plates_come_outermost_first_with_the_data_that_they_stand_for():
    def program():
        outer = pyro.plate("outer", 20, subsample_size=5, dim=-2)
        with outer, pyro.plate("inner", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    outer, inner = plates(run(program).nodes["z"])
    assert (outer.name, outer.dim, outer.size, outer.num_data) == ("outer", -2, 5, 20)
    assert outer.subsamples and outer.scale == 4.0
    assert (inner.name, inner.dim, inner.size, inner.num_data) == ("inner", -1, 3, 3)
    assert not inner.subsamples and inner.scale == 1.0


def test_sequential_plates_are_no_batch_dimensions():
    def program():
        for i in pyro.plate("data", 2):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    assert plates(run(program).nodes["z_1"]) == ()


# units


def with_global(x):
    """A global latent beside local ones, in a plate that stands for 100 data."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class GlobalGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc, self.net = nn.Parameter(torch.zeros(())), nn.Linear(1, 1)

    def forward(self, x):
        pyro.module("guide", self)
        pyro.sample("w", dist.Normal(self.loc, 0.1))
        with pyro.plate("data", 100, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(self.net(x.unsqueeze(-1)).squeeze(-1), 1.0))


def test_per_datum_is_per_row_of_the_plate_of_the_observations():
    """Divided by what the plate stands for: 100, neither the 20 rows at hand nor 1."""
    guide, x = GlobalGuide(), torch.randn(20)
    assert UnitCounter(with_global).of((x,)).num_data == 100

    got = evaluate(with_global, guide, x, batch_size=20, seed=0)
    pyro.set_rng_seed(0)
    losses = [Trace_ELBO().loss(with_global, guide, x) for _ in range(400)]
    spread = torch.tensor(losses).std().item()
    assert got == pytest.approx(sum(losses) / 400 / 100, abs=4 * spread / 100)

    history = fit(with_global, guide, x, epochs=1, batch_size=20, progress=False)
    assert history.train[0] == pytest.approx(sum(losses) / 400 / 100, abs=4 * spread / 100)


def test_data_along_another_dimension_than_the_first():
    """Words × documents: the data are the columns."""

    def model(words):
        with pyro.plate("documents", words.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("words", words.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=words)

    units = UnitCounter(model).of((torch.zeros(30, 4),))
    assert (units.size, units.num_data) == (4, 4)


def test_a_program_that_draws_its_own_rows():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])

    units = UnitCounter(model).of((torch.zeros(40),))
    assert (units.size, units.num_data) == (5, 40)


def test_observations_that_share_no_plate_are_one_unit(caplog):
    """The program says nothing of rows, so its argument's length means nothing."""

    def model(x):
        pyro.sample("x", dist.Normal(torch.zeros(7), 1.0).to_event(1), obs=x)

    counter = UnitCounter(model)
    assert [counter.of((torch.zeros(n, 7)[0],)).num_data for n in (1, 2)] == [1, 1]
    assert caplog.text.count("the whole data count as one unit") == 1


# structures


def test_structures_are_shapes_dtypes_and_absences():
    x = torch.zeros(3, 2)
    same = batch_structure((x, None), {"k": x})
    assert same == batch_structure((x + 1, None), {"k": x + 1})
    for other in (
        batch_structure((x[:2], None), {"k": x}),
        batch_structure((x.double(), None), {"k": x}),
        batch_structure((x, x), {"k": x}),
        batch_structure((x, None), {"j": x}),
        batch_structure((x, None)),
    ):
        assert same != other
    assert batch_structure(([x, x],)) != batch_structure(([x, x[:1]],))
    assert batch_structure((3,)) != batch_structure((4,))
    assert batch_structure((0.1,)) == batch_structure((0.2,))  # a temperature, say


def test_findings_are_kept_by_program_and_structure():
    calls = []

    class Owner:
        def program(self, x):
            pass

    def find():
        calls.append(1)
        return len(calls)

    owner, x = Owner(), torch.zeros(3)
    found = Findings()
    assert found.of((owner.program,), (x,), find) == 1
    assert found.of((owner.program,), (x + 1,), find) == 1  # another bound method, equal
    assert found.of((owner.program,), (x[:2],), find) == 2
    assert found.of((Owner().program,), (x,), find) == 3
    assert found.of((bind_keywords(owner.program, {"k": x}),), (), find) == 4
    assert found.of((bind_keywords(owner.program, {"k": x + 1}),), (), find) == 4
    assert len(copy.deepcopy(found)) == 0 and len(found) == 4


def test_findings_leave_buffers_alone():
    norm, x = nn.BatchNorm1d(2), torch.randn(8, 2)
    before = norm.running_mean.clone()
    Findings().of((norm,), (x,), lambda: norm(x))
    assert torch.equal(norm.running_mean, before)


# runs


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.1))


def test_runs_with_given_values_and_against_other_traces():
    x, z = torch.randn(4), torch.randn(4)
    given = run(model, (x,), given={"z": z})
    assert torch.equal(given.nodes["z"]["value"], z)
    assert role(given.nodes["z"]) is Role.OBSERVED

    traces = run_pair(model, guide, (x,))
    assert torch.equal(traces.model.nodes["z"]["value"], traces.guide.nodes["z"]["value"])


def test_dry_runs_are_seen_by_nobody():
    x, flags = torch.randn(4), []

    def program(x):
        flags.append(is_dry_run())
        model(x)

    state = torch.get_rng_state()
    with poutine.trace() as seen:
        trace = dry_run(program, (x,))
    assert not seen.trace.nodes
    assert torch.equal(torch.get_rng_state(), state)
    assert set(sites(trace)) == {"z", "x"}

    program(x)
    assert flags == [True, False]


def test_dry_runs_are_shared_by_program_and_arguments():
    calls, x = [], torch.randn(4)

    class Owner:
        def program(self, x):
            calls.append(1)
            model(x)

    owner = Owner()
    with share_dry_runs():
        first = dry_run(owner.program, (x,))
        assert dry_run(owner.program, (x,)) is first
        with share_dry_runs():  # within another one it is the same scope
            assert dry_run(owner.program, (x,)) is first
        dry_run(owner.program, (x.clone(),))
        dry_run(owner.program, (), {"x": x})
        for value in (x, x.clone()):  # keywords that are bound belong to the program
            dry_run(bind_keywords(owner.program, {"x": value}), ())
    assert len(calls) == 5
    dry_run(owner.program, (x,))
    assert len(calls) == 6


def test_a_model_that_cannot_draw_is_run_against_the_guide():
    """An improper prior has a density, but no draws."""

    def improper(x):
        with pyro.plate("data", len(x)):
            prior = dist.ImproperUniform(dist.constraints.real, (len(x),), ())
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    plate = find_data_plate(improper, guide, (torch.zeros(5),))
    assert (plate.name, plate.size) == ("data", 5)


# host synchronisation


def test_pyros_functions_are_replaced_for_one_thread_alone():
    """Another thread meets Pyro's own functions, and both leave them in place."""
    original, inside, done = trace_elbo.torch_item, threading.Event(), threading.Event()
    seen = []

    def hold():
        with without_host_sync():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    seen.append(trace_elbo.torch_item(torch.ones(())))
    with without_host_sync(), without_host_sync():
        seen.append(trace_elbo.torch_item(torch.ones(())))
    seen.append(trace_elbo.torch_item(torch.ones(())))
    done.set()
    thread.join()

    assert [isinstance(value, torch.Tensor) for value in seen] == [False, True, False]
    assert trace_elbo.torch_item is original
