"""Averaged weights: the recursion itself, what sees them, and a resumed run that ends where it would have."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn

from pyro_vaes.infer import Callback, EarlyStopping, WeightAverage, fit, load_weights
from pyro_vaes.programs.pair import Pair
from tests.infer.pairs import D, binary, binary_vae, losses, same

quick = functools.partial(fit, epochs=3, batch_size=32, seed=5, progress=False)


class Mean(PyroModule):
    """x ~ N(loc, I): no latents, so that the bound is a function of the weights alone."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        pass


def live(vae):
    return {n: t.clone() for n, t in Pair(vae.model, vae.guide).state().items()}


class Trace(Callback):
    """The weights after each step, and those that callbacks see after each epoch."""

    def __init__(self, vae):
        self.vae, self.steps, self.epochs = vae, [], []

    def stepped(self, run):
        self.steps.append(live(self.vae))

    def epoch(self, run):
        self.epochs.append(live(self.vae))


def averages(steps, decay):
    """By the recursion, after each step."""
    found = [steps[0]]
    for step in steps[1:]:
        found.append({n: decay * found[-1][n] + (1 - decay) * t for n, t in step.items()})
    return found


def close(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_the_average_is_evaluated_seen_and_left_behind_and_the_steps_go_on_without_it():
    plain, averaged, valid = Mean(), Mean(), 1 - binary(40, seed=3)
    alone, trace = Trace(plain), Trace(averaged)
    optim = functools.partial(torch.optim.Adam, lr=0.05)
    without = quick(plain.model, plain.guide, binary(), optim=optim, callbacks=[alone])
    average = WeightAverage(0.8)
    history = quick(averaged.model, averaged.guide, binary(), valid=valid, optim=optim, callbacks=[average, trace])
    assert history.train == without.train
    assert all(same(a, b) for a, b in zip(alone.steps, trace.steps, strict=True))
    wanted = averages(trace.steps, 0.8)
    for epoch in range(3):
        there = wanted[3 * epoch + 2]
        close(trace.epochs[epoch], there)
        loss = -dist.Normal(there["model.loc"], 1.0).log_prob(valid).sum(-1).mean().item()
        assert history.valid[epoch] == pytest.approx(loss, rel=1e-5)
    close(live(averaged), wanted[-1])


@pytest.mark.parametrize("turned", [False, True])
def test_early_stopping_restores_the_best_average_in_whichever_order(turned):
    vae = binary_vae()
    trace = Trace(vae)
    callbacks = [WeightAverage(0.8), EarlyStopping(3), trace]
    opposite = 1 - binary(40, seed=3)  # fitting the one is unfitting the other
    optim = functools.partial(torch.optim.Adam, lr=0.05)
    history = quick(
        vae.model,
        vae.guide,
        binary(),
        valid=opposite,
        epochs=50,
        optim=optim,
        callbacks=callbacks[::-1] if turned else callbacks,
    )
    best = int(np.argmin(history.valid))
    assert history.best_epoch == best + 1 and len(history) == best + 4
    close(live(vae), averages(trace.steps, 0.8)[3 * best + 2])


def test_resumed_runs_are_exact_and_the_checkpoint_holds_the_average(tmp_path):
    def run(epochs, directory=None, resume=False, seed=0):
        vae = binary_vae(seed=seed, middle=nn.BatchNorm1d(8))
        history = quick(
            vae.model,
            vae.guide,
            binary(),
            valid=binary(40, seed=3),
            epochs=epochs,
            callbacks=[WeightAverage(0.9), EarlyStopping(5)],
            checkpoint=directory,
            resume=resume,
        )
        return vae, history

    whole, history = run(4)
    part, _ = run(2, tmp_path / "run")
    fresh = binary_vae(seed=3, middle=nn.BatchNorm1d(8))
    load_weights(tmp_path / "run", fresh.model, fresh.guide)
    assert same(live(fresh), live(part))
    resumed, again = run(4, tmp_path / "run", resume=True, seed=9)
    assert losses(history) == losses(again) and same(live(whole), live(resumed))
    load_weights(tmp_path / "run", fresh.model, fresh.guide)
    assert same(live(fresh), live(whole))


def test_a_killed_run_resumes_from_the_steps_and_not_from_the_average(tmp_path):
    class Killed(Callback):
        def __init__(self, at):
            self.at = at

        def stepped(self, run):
            if run.step == self.at:
                raise KeyboardInterrupt

    ends = []
    for at in (None, 5):  # in the middle of the second epoch
        vae, directory = binary_vae(), tmp_path / str(at)
        arguments = {"checkpoint": directory, "valid": binary(40, seed=3)}
        if at is not None:
            with pytest.raises(KeyboardInterrupt):
                quick(vae.model, vae.guide, binary(), callbacks=[WeightAverage(0.9), Killed(at)], **arguments)
        history = quick(
            vae.model, vae.guide, binary(), callbacks=[WeightAverage(0.9), Callback()], resume=True, **arguments
        )
        ends.append((losses(history), live(vae)))
    assert ends[0][0] == ends[1][0] and same(ends[0][1], ends[1][1])


def test_the_average_starts_anew_after_a_rollback_and_no_step_leaves_the_weights():
    vae = Mean()
    average, trace = WeightAverage(0.5), Trace(vae)

    class RollBack(Callback):
        def stepped(self, run):
            if run.step == 2:
                average.rolled_back(run)

    quick(vae.model, vae.guide, binary(), epochs=1, callbacks=[average, RollBack(), trace])
    close(live(vae), trace.steps[-1])  # one step since
    still = Mean()
    quick(still.model, still.guide, binary(), epochs=0, callbacks=[WeightAverage(0.5)])
    assert (still.loc == 0).all()


def test_the_decay_is_a_share():
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share of the old average"):
            WeightAverage(decay)
