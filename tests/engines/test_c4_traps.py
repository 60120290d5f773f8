"""C4: programs of which a graph would be wrong end with eager's numbers, or are reported."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vaes.infer import Callback, fit, scale_latents
from pyro_vaes.infer.engines import engine as engines
from tests.infer.pairs import D, binary, binary_vae, losses, same, weights

x = binary(64)
STEPS_WITHOUT_A_CHECK = 20


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch):
    """Graphs are compared often enough for a run of a few epochs."""
    monkeypatch.setattr(engines, "STEPS_BETWEEN_CHECKS", {"captured": STEPS_WITHOUT_A_CHECK, "compiled": 20})


class Programs(nn.Module):
    """A VAE whose model passes its logits through a trap."""

    def __init__(self, trap):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(D, 4), nn.Linear(2, D)
        self.trap, self.beta, self.calls = trap, 1.0, 0
        self.noise = nn.Dropout(0.5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.noise(self.trap(self, self.decoder(z), x))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x.clone()).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(trap, mode, callback=None, **options):
    programs = Programs(trap)
    settings = {"epochs": 5, "batch_size": 8, "seed": 3, "progress": False} | options
    data = settings.pop("data", x)
    data = data() if callable(data) else data
    callbacks = [] if callback is None else [callback(programs)]
    history = fit(programs.model, programs.guide, data, compile=mode, callbacks=callbacks, **settings)
    return programs, history


def both(trap, callback=None, **options):
    """The eager run and the captured one, which must be equal; the history of the latter."""
    pyro.clear_param_store()
    eager, wanted = train(trap, False, callback, **options)
    pyro.clear_param_store()
    captured, found = train(trap, "capture", callback, **options)
    assert same(weights(eager), weights(captured)) and losses(wanted) == losses(found)
    return found


def test_without_a_trap():
    history = both(lambda self, logits, x: logits)
    assert history.engine == "captured" and history.engine_note == ""


READS = {
    "item": lambda self, logits, x: logits * (1 + 0.1 * logits.mean().item()),
    "branch": lambda self, logits, x: 2 * logits if logits.mean() > 0 else logits,
    "numpy": lambda self, logits, x: logits + float(x.numpy().mean()),
    "asarray": lambda self, logits, x: logits + float(np.asarray(x).mean()),
    "tolist": lambda self, logits, x: logits + sum(x[0].tolist()),
}


@pytest.mark.parametrize("trap", READS)
def test_reads_into_python_run_eagerly(trap):
    history = both(READS[trap])
    assert history.engine == "eager" and "into Python" in history.engine_note
    assert "test_c4_traps.py, line" in history.engine_note


def test_pythons_and_numpys_random_run_eagerly():
    history = both(lambda self, logits, x: logits * random.random())
    assert history.engine == "eager" and "Python's random" in history.engine_note
    history = both(lambda self, logits, x: logits * np.random.rand())  # noqa: NPY002
    assert history.engine == "eager" and "NumPy's generator" in history.engine_note


def test_a_generator_of_its_own_runs_eagerly():
    def trap(self, logits, x):
        return logits + torch.randn((), generator=torch.Generator().manual_seed(len(x)))

    assert "generator of their own" in both(trap).engine_note


def counted(self, logits, x):
    self.calls += 1
    return logits / self.calls


def test_a_counter_of_an_attribute_or_a_closure_runs_eagerly():
    history = both(counted)
    assert history.engine == "eager" and "changes model.calls" in history.engine_note

    def closure():
        calls, log = 0, []

        def trap(self, logits, x):
            nonlocal calls
            calls += 1
            log.append(calls)
            return logits / calls

        return trap

    _, wanted = train(closure(), False)
    _, found = train(closure(), "capture")
    assert losses(wanted) == losses(found) and found.engine == "eager"


def test_a_tensor_that_is_left_behind_runs_eagerly():
    def trap(self, logits, x):
        self.last = logits.detach()
        return logits

    assert "last" in both(trap).engine_note


class Sets(Callback):
    """Changes an attribute every few steps."""

    def __init__(self, programs, change, every=5):
        self.programs, self.change, self.every = programs, change, every

    def stepped(self, run):
        if run.step % self.every == 0:
            self.change(self.programs, run.step)


def weighed(self, logits, x):
    return self.beta * logits


def test_a_float_that_a_callback_changes_is_seen():
    def change(programs, step):
        programs.beta = 1.0 + step // 20

    history = both(weighed, lambda p: Sets(p, change))
    assert history.engine in ("captured", "eager")

    def always(programs, step):
        programs.beta = 1.0 + 0.01 * step

    history = both(weighed, lambda p: Sets(p, always, every=1))
    assert history.engine == "eager" and "beta changes from step to step" in history.engine_note


def test_a_tensor_that_a_callback_changes_in_place_is_followed():
    def start(programs):
        programs.beta = torch.ones(())
        return Sets(programs, lambda p, step: p.beta.fill_(1.0 + 0.01 * step), every=1)

    assert both(weighed, start).engine == "captured"


def test_training_mode_that_a_callback_toggles_is_seen():
    history = both(lambda self, logits, x: logits, lambda p: Sets(p, lambda q, step: q.train(not q.training), every=7))
    assert history.engine == "captured"


def test_a_parameter_frozen_in_mid_run_is_seen():
    def freeze(programs, step):
        programs.decoder.requires_grad_(step % 20 == 0)

    assert both(lambda self, logits, x: logits, lambda p: Sets(p, freeze, every=10)).engine == "captured"


def test_a_param_statement_that_comes_later():
    def trap(self, logits, x):
        return logits + pyro.param("late", torch.zeros(D)) if self.beta > 1 else logits

    def change(programs, step):
        programs.beta = 2.0

    both(trap, lambda p: Sets(p, change, every=2))


def test_a_batch_that_is_changed_in_place():
    def trap(self, logits, x):
        x.mul_(0.5).round_()
        return logits

    both(trap)
    both(trap, data=lambda: [b.clone() for b in x.split(8)])


def test_a_site_that_some_batches_have():
    def trap(self, logits, x):
        if len(x) == 8:
            pyro.sample("extra", dist.Normal(logits.sum(-1), 1.0), obs=x.sum(-1))
        return logits

    assert both(trap, data=x[:60]).engine == "captured"


class Handler(Callback):
    """A handler whose number changes."""

    def __init__(self, make, every=1):
        self.make, self.every = make, every

    def handler(self, run):
        return self.make(1.0 + 0.1 * (run.step // self.every))


@pytest.mark.parametrize("every", [1, 16])
def test_the_numbers_of_handlers_are_followed(every):
    history = both(lambda self, logits, x: logits, lambda p: Handler(scale_latents, every))
    assert history.engine == "captured"
    other = functools.partial(pyro.poutine.scale, None)
    history = both(lambda self, logits, x: logits, lambda p: Handler(lambda s: other(scale=s), every))
    assert every > 1 or history.engine == "eager"


def test_a_difference_found_late_makes_the_epoch_be_done_again():
    """A fault that no watch can see: an object without a dictionary of its attributes."""

    class Hidden:
        __slots__ = ("value",)

    hidden = Hidden()

    def trap(self, logits, x):
        return logits * hidden.value

    def start(programs):
        hidden.value = 1.0

        def change(programs, step):
            hidden.value = 1.0 if step < 28 else 2.0

        return Sets(programs, change, every=1)

    _, wanted = train(trap, False, start, epochs=8)
    with pytest.warns(UserWarning, match="The epoch is done again"):
        _, found = train(trap, "capture", start, epochs=8)
    assert found.engine == "eager" and "other numbers" in found.engine_note
    assert wanted.train[-1] == pytest.approx(found.train[-1], rel=0.2)


def test_svi_steps_of_a_callback_train():
    """Pyro's own functions are in place while a callback runs."""
    other = binary_vae()

    class Steps(Callback):
        def stepped(self, run):
            pyro.infer.SVI(other.model, other.guide, pyro.optim.SGD({"lr": 1e-4}), Trace_ELBO()).step(x)

    before = weights(other)
    train(lambda self, logits, x: logits, "capture", lambda p: Steps())
    assert not same(before, weights(other))
