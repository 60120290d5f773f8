"""NaN in the middle of training: raise with the site table, skip and count, or roll back."""

import copy
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pyro_vaes.infer import Callback, LearningRate, NonFiniteError, Run, fit
from pyro_vaes.infer.training.nonfinite import Guard
from pyro_vaes.programs.pair import Pair
from tests.infer.pairs import binary, binary_vae, same, weights

quick = functools.partial(fit, epochs=3, batch_size=32, seed=5, progress=False)


class Poison(Callback):
    """Makes the loss, or only a gradient, NaN at some steps."""

    def __init__(self, steps, what="loss"):
        self.steps, self.what, self.seen = set(steps), what, 0

    def handler(self, run):
        self.seen = run.step
        if self.what == "loss" and run.step in self.steps:
            return pyro.poutine.scale(scale=torch.tensor(float("inf")))
        return None

    def gradients(self, run, parameters):
        if self.what == "gradient" and run.step in self.steps:
            parameters[0].grad[0] = float("nan")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_raise_shows_the_sites(what):
    vae = binary_vae()
    steps = []

    class Remember(Callback):
        def stepped(self, run):
            steps.append(weights(vae))

    with pytest.raises(NonFiniteError) as error:
        quick(vae.model, vae.guide, binary(), callbacks=[Poison([4], what), Remember()])
    said = str(error.value)
    assert said.startswith("At step 4 the loss is")
    for part in (
        "gradients are not finite",
        "guide z",
        "model z",
        "model x",
        "log density",
        "ClipGradNorm",
        "on_nan='skip'",
    ):
        assert part in said
    assert len(steps) == 4 and same(weights(vae), steps[-1])  # the bad step was not taken


def test_a_factor_has_no_values_to_show():
    loc = nn.Parameter(torch.zeros(2))

    def model(x):
        mean = pyro.param("loc", loc) + (0.0 if (x != 7).all() else float("nan"))
        with pyro.plate("data", len(x)):
            pyro.factor("penalty", -mean.square().sum().expand(len(x)))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    x = torch.zeros(64, 2)

    class Sevens(Callback):
        def stepped(self, run):
            x.fill_(7.0)

    with pytest.raises(NonFiniteError) as error:
        quick(model, lambda x: None, x, callbacks=[Sevens()])
    rows = {line[:30].strip(): line.split()[-3:] for line in str(error.value).splitlines()}
    assert rows["model penalty"] == ["-", "-", "nan"] and rows["model x"] == ["7", "7", "nan"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skip_counts_and_continues(what):
    vae = binary_vae()
    history = quick(vae.model, vae.guide, binary(), on_nan="skip", callbacks=[Poison([1, 4], what)])
    assert history.skipped == 2 and len(history) == 3
    assert all(torch.tensor(history.train).isfinite()) and all(torch.tensor(history.grad_norm).isfinite())
    assert all(p.isfinite().all() for p in vae.parameters())


def test_skipping_is_as_if_the_batch_had_not_been():
    """With plain SGD, a run in which all steps but the first are skipped ends where a run of one step ends."""
    optim = functools.partial(torch.optim.SGD, lr=0.1)
    ends = []
    for callbacks, rows in (([Poison([1, 2])], 96), ([], 96)):
        vae = binary_vae()

        class Stop(Callback):
            def stepped(self, run, vae=vae):
                if run.step == 1:
                    ends.append(weights(vae))

        quick(vae.model, vae.guide, binary(rows), epochs=1, optim=optim, on_nan="skip", callbacks=[*callbacks, Stop()])
        if callbacks:
            assert same(weights(vae), ends[0])
    assert same(ends[0], ends[1])


def test_repeated_failures_raise():
    vae = binary_vae()
    with pytest.raises(NonFiniteError, match="20 steps in a row were skipped"):
        quick(vae.model, vae.guide, binary(), epochs=10, on_nan="skip", callbacks=[Poison(range(2, 40))])
    with pytest.raises(NonFiniteError, match="5 rollbacks did not help"):
        quick(vae.model, vae.guide, binary(), epochs=10, on_nan="rollback", callbacks=[Poison(range(2, 40))])


@pytest.mark.parametrize("scheduled", [False, True])
def test_rollback_restores_and_halves(scheduled):
    vae = binary_vae(middle=nn.BatchNorm1d(8))
    starts, after = {}, {}

    class Remember(Callback):
        def start(self, run):
            starts[0] = weights(vae), {}

        def epoch(self, run):
            starts[run.epoch] = weights(vae), copy.deepcopy(run.optimizer.state_dict()["state"])

        def rolled_back(self, run):
            state = copy.deepcopy(run.optimizer.state_dict()["state"])
            after[run.step] = (weights(vae), state, run.optimizer.param_groups[0]["lr"])

    schedule = [LearningRate(lambda o: LambdaLR(o, lambda epoch: 1.0))] if scheduled else []
    optim = functools.partial(torch.optim.Adam, lr=0.08)
    history = quick(
        vae.model, vae.guide, binary(), epochs=4, optim=optim, on_nan="rollback",
        callbacks=[*schedule, Poison([4, 5, 7]), Remember()],
    )  # fmt: skip
    assert history.skipped == 3 and list(after) == [4, 5, 7]
    for step, epoch in ((4, 1), (5, 1), (7, 2)):
        assert same(after[step][0], starts[epoch][0])
        for index, state in after[step][1].items():
            assert same(state, starts[epoch][1][index])
    assert [after[s][2] for s in after] == pytest.approx([0.04, 0.02, 0.01])
    assert history.learning_rate == pytest.approx([0.08, 0.02, 0.01, 0.01])


def test_skipped_batches_do_not_spoil_running_statistics():
    vae = binary_vae(middle=nn.BatchNorm1d(8))
    x = binary(960)

    class Source:
        def __len__(self):
            return len(x)

        def to(self, device):
            return self

        def batch(self, index, generator=None):
            batch = x[index].clone()
            if generator is not None and (index == 700).any():
                batch[3] = float("nan")
            return (batch,)

    def tolerant(data):  # the NaN comes later than any check of the first batch
        return fit(vae.model, vae.guide, data, epochs=2, batch_size=32, seed=1, on_nan="skip", progress=False, valid=x)

    history = tolerant(Source())
    assert history.skipped == 2
    assert all(t.isfinite().all() for t in vae.state_dict().values())
    assert all(torch.tensor(history.valid).isfinite())


def test_a_model_that_breaks_by_itself():
    """An unbounded scale that runs to zero: the table shows which site did it."""

    def model(x):
        scale = pyro.param("scale", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, scale).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    optim = functools.partial(torch.optim.SGD, lr=0.5)
    with pytest.raises(NonFiniteError, match=r"(?s)loss is nan.*model x.*nan"):
        fit(model, guide, 1e-3 * torch.randn(64, 1), epochs=50, optim=optim, seed=0, progress=False)


def deferred_run(on_nan, bad_steps, steps=8, interval=5):
    """The path of other devices, on the CPU: a fused optimiser skips bad steps by itself."""
    vae, x = binary_vae(), binary(10)
    pair = Pair(vae.model, vae.guide)
    pair.parameters = dict(vae.named_parameters())
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2, fused=True)
    run = Run(pair, optimizer, 1, steps)
    guard = Guard(run, on_nan, torch.device("cpu"))
    guard.deferred, guard.interval = True, interval
    guard.start_epoch()
    taken = []
    for step in range(steps):
        for index, p in enumerate(vae.parameters()):
            p.grad = torch.full_like(p, 0.1 * (index + step + 1))
        before = weights(vae)
        value = torch.tensor(float("nan") if step in bad_steps else float(step))
        guard.step((x,), value, len(x))
        run.step += 1
        taken.append(not same(before, weights(vae)))
    return guard, run, optimizer, taken, vae


def test_deferred_steps_are_skipped_by_the_optimiser():
    guard, run, optimizer, taken, _ = deferred_run("skip", {2, 6})
    assert taken == [s not in (2, 6) for s in range(8)]
    assert run.history.skipped == 1  # the second is still to be looked at
    (total, rows), norm = guard.finish_epoch()
    assert run.history.skipped == 2 and rows == 60 and total == pytest.approx(10 * (0 + 1 + 3 + 4 + 5 + 7))
    assert 0 < norm < 1e3 and guard.steps == 6 and guard.in_a_row == 0
    assert all(state["step"].item() == 6 for state in optimizer.state.values())
    guard.release()
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


def test_deferred_steps_raise_and_roll_back_when_looked_at():
    with pytest.raises(NonFiniteError, match="loss is nan"):
        deferred_run("raise", {1})
    guard, run, optimizer, _, vae = deferred_run("rollback", {1, 3}, steps=5)
    assert run.history.skipped == 2 and guard.rollbacks == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-3)
    assert same(weights(vae), weights(binary_vae()))


def test_the_guard_reads_its_flag_back_after_an_error():
    vae = binary_vae()
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)
    with pytest.raises(NonFiniteError):
        quick(vae.model, vae.guide, binary(), optim=optimizer, callbacks=[Poison([1])])
    assert not hasattr(optimizer, "found_inf")
