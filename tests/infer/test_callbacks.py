"""Between the steps: schedules, clipping, early stopping, logging; and evaluation, which changes nothing."""

import functools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, ReduceLROnPlateau

from pyro_vaes.infer import (
    Callback,
    ClipGradNorm,
    EarlyStopping,
    KLWarmup,
    LearningRate,
    SoftFreeBits,
    TensorBoard,
    evaluate,
    fit,
    scale_latents,
)
from tests.infer.pairs import D, binary, binary_vae, exact_linear, linear_vae, losses, same, weights

quick = functools.partial(fit, epochs=3, batch_size=32, seed=5, progress=False)


class Watch(Callback):
    """Notes what it is asked for."""

    def __init__(self, note):
        self.note, self.notes = note, []

    def stepped(self, run):
        self.notes.append(self.note(run))


def test_evaluate_changes_nothing_and_repeats_itself():
    vae = binary_vae(middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.4)))
    vae.encoder.eval()
    before, modes = weights(vae), [m.training for m in vae.modules()]
    generators = torch.get_rng_state(), pyro.util.get_rng_state()["numpy"][1].copy()
    values = {evaluate(vae.model, vae.guide, binary(), batch_size=20) for _ in range(3)}
    assert len(values) == 1
    assert same(weights(vae), before) and modes == [m.training for m in vae.modules()]
    assert torch.equal(torch.get_rng_state(), generators[0]) and np.array_equal(
        pyro.util.get_rng_state()["numpy"][1], generators[1]
    )
    assert not pyro.get_param_store().keys()
    assert evaluate(vae.model, vae.guide, binary(), seed=1) not in values


def test_evaluate_is_exact_for_the_linear_model():
    model, guide, evidence = exact_linear()
    x = evidence.sample((50,))
    assert evaluate(model, guide, x, batch_size=16) == pytest.approx(-evidence.log_prob(x).mean().item(), abs=1e-9)


def test_held_out_evaluation_does_not_touch_training():
    ends = []
    for valid in (None, binary(40, seed=3)):
        vae = binary_vae(middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.2)))
        history = quick(vae.model, vae.guide, binary(), valid=valid)
        ends.append((weights(vae), history.train))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_early_stopping_restores_the_best_weights():
    class Remember(Callback):
        def __init__(self):
            self.weights = []

        def epoch(self, run):
            self.weights.append(weights(vae))

    vae, remember = binary_vae(), Remember()
    opposite = 1 - binary(40, seed=3)  # fitting the one is unfitting the other
    optim = functools.partial(torch.optim.Adam, lr=0.05)
    history = quick(
        vae.model, vae.guide, binary(), valid=opposite, epochs=50, optim=optim, callbacks=[EarlyStopping(3), remember]
    )
    best = int(np.argmin(history.valid))
    assert history.best_epoch == best + 1 and len(history) == best + 4
    assert same(weights(vae), remember.weights[best]) and not same(weights(vae), remember.weights[-1])
    assert history.stopped == f"stopped early: no better held-out loss since epoch {best + 1}"


def test_early_stopping_needs_held_out_data_before_training():
    vae = binary_vae()
    before = weights(vae)
    with pytest.raises(ValueError, match="pass valid="):
        quick(vae.model, vae.guide, binary(), callbacks=[EarlyStopping()])
    assert same(weights(vae), before)


@pytest.mark.parametrize("max_norm", [0.05, 1e6])
def test_clipping(max_norm):
    def norm(run):
        return torch.cat([p.grad.flatten() for p in run.pair.parameters.values()]).norm().item()

    vae, watch = binary_vae(), Watch(norm)
    quick(vae.model, vae.guide, binary(), callbacks=[ClipGradNorm(max_norm), watch])
    if max_norm < 1:
        assert all(n == pytest.approx(max_norm, rel=1e-3) for n in watch.notes)
    else:
        plain, again = binary_vae(), binary_vae()
        quick(plain.model, plain.guide, binary())
        quick(again.model, again.guide, binary(), callbacks=[ClipGradNorm(max_norm)])
        assert same(weights(plain), weights(again)) and min(watch.notes) > 0.05


def test_learning_rate_per_step_and_per_epoch():
    for per_step, wanted in ((False, [1, 1, 1, 2, 2, 2, 3, 3, 3]), (True, [2, 3, 4, 5, 6, 7, 8, 9, 10])):
        schedule = LearningRate(lambda o: LambdaLR(o, lambda t: 1 + t), per_step=per_step)
        watch = Watch(lambda run: run.optimizer.param_groups[0]["lr"])
        vae = binary_vae()
        optim = functools.partial(torch.optim.SGD, lr=1e-3)
        history = quick(vae.model, vae.guide, binary(), optim=optim, callbacks=[schedule, watch])
        assert watch.notes == pytest.approx([1e-3 * w for w in wanted])
        assert history.learning_rate == pytest.approx([1e-3 * wanted[i] for i in (2, 5, 8)])


def test_plateau_watches_the_losses():
    vae = binary_vae()
    plateau = LearningRate(lambda o: ReduceLROnPlateau(o, patience=0, threshold=100.0, threshold_mode="abs"))
    history = quick(vae.model, vae.guide, binary(), valid=binary(), callbacks=[plateau])
    assert history.learning_rate == pytest.approx([1e-3, 1e-3, 1e-4])
    with pytest.raises(ValueError, match="leave per_step out"):
        per_step = LearningRate(lambda o: ReduceLROnPlateau(o), per_step=True)
        quick(vae.model, vae.guide, binary(), callbacks=[per_step])


def test_kl_warmup_values():
    linear = KLWarmup(10, start=0.2, end=0.7)
    assert [linear.beta(t) for t in (0, 5, 10, 1000)] == pytest.approx([0.2, 0.45, 0.7, 0.7])
    curved = KLWarmup(10, start=0.2, end=0.7, exponential=True)
    assert [curved.beta(t) for t in (0, 4, 10)] == pytest.approx(
        [0.2, 0.7 - 0.5 * math.exp(-2), 0.7 - 0.5 * math.exp(-5)]
    )
    assert KLWarmup(7).beta(7) == 1.0 and KLWarmup(7).beta(0) == 1e-3
    for arguments in ({"steps": 0}, {"steps": 5, "start": 0.0}, {"steps": 5, "end": -1.0}):
        with pytest.raises(ValueError, match="positive weights"):
            KLWarmup(**arguments)


def test_kl_warmup_weighs_training_and_not_the_held_out_loss():
    x, still = torch.randn(32, D), functools.partial(torch.optim.SGD, lr=0.0)
    vae = linear_vae()
    plain = quick(vae.model, vae.guide, x, valid=x, epochs=1, optim=still)
    warm = quick(vae.model, vae.guide, x, valid=x, epochs=1, optim=still, callbacks=[KLWarmup(10, start=0.25)])
    assert warm.valid == plain.valid

    class Fixed(Callback):
        def handler(self, run):
            return scale_latents(0.25)

    fixed = quick(vae.model, vae.guide, x, epochs=1, optim=still, callbacks=[Fixed()])
    assert warm.train == fixed.train and warm.train[0] < plain.train[0]


def test_soft_free_bits():
    measured = iter([2.0, 2.0, 0.5, 1.02])
    vae, callback = binary_vae(), SoftFreeBits(1.0, lambda: next(measured))
    found = []

    class Watched(Callback):
        def epoch(self, run):
            found.append(callback.weight)

    callback.weight = 0.5
    quick(vae.model, vae.guide, binary(), epochs=4, callbacks=[callback, Watched()])
    assert found == pytest.approx([0.55, 0.605, 0.5445, 0.5445])
    for _ in range(20):
        callback.measure = lambda: 5.0
        callback.epoch(None)
    assert callback.weight == 1.0 and callback.handler(None) is None
    with pytest.raises(ValueError, match="must be positive"):
        SoftFreeBits(0.0, lambda: 1.0)
    with pytest.raises(ValueError, match="max_norm"):
        ClipGradNorm(0.0)
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(0)


def test_T33_the_path_of_soft_free_bits_follows_from_the_kls_alone():
    """With the paper's slack and another one, measured every two steps of three epochs of four."""
    kls = [3.0, 0.5, 0.9, 1.04, 1.06, 1.2]
    for slack, wanted in ((0.05, [1.0, 0.9, 0.81, 0.81, 0.891, 0.9801]), (0.1, [1.0, 0.9, 0.81, 0.81, 0.81, 0.891])):
        for _ in range(2):
            vae, measured, found = binary_vae(), iter(kls), []
            callback = SoftFreeBits(1.0, lambda kls=measured: next(kls), slack=slack, every=2)

            class Watched(Callback):
                def stepped(self, run, callback=callback, found=found):
                    if run.step % 2 == 0:
                        found.append(callback.weight)

            quick(vae.model, vae.guide, binary(16), batch_size=4, callbacks=[callback, Watched()])
            assert found == pytest.approx(wanted)
    with pytest.raises(ValueError, match="slack is a share"):
        SoftFreeBits(1.0, lambda: 1.0, slack=-0.1)
    with pytest.raises(ValueError, match="every a number of steps"):
        SoftFreeBits(1.0, lambda: 1.0, every=0)


def test_tensorboard_files(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    vae = binary_vae()
    history = quick(vae.model, vae.guide, binary(), valid=binary(), callbacks=[TensorBoard(tmp_path)])
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss/train", "loss/valid", "learning_rate"}
    written = events.Scalars("loss/valid")
    assert [e.step for e in written] == [1, 2, 3]
    assert [e.value for e in written] == pytest.approx(history.valid, rel=1e-6)


def test_callbacks_do_nothing_by_default():
    ends = []
    for callbacks in ([], [Callback(), LearningRate(lambda o: ConstantLR(o, factor=1.0))]):
        vae = binary_vae()
        ends.append((losses(quick(vae.model, vae.guide, binary(), callbacks=callbacks)), weights(vae)))
    assert ends[0][0] == ends[1][0] and same(ends[0][1], ends[1][1])
    assert Trace_ELBO().num_particles == 1
