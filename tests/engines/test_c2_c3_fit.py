"""C2, C3: training under each engine ends where eager training ends, resumed or not."""

import functools
import shutil

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyro_vaes.infer import (
    Adversarial_ELBO,
    Callback,
    ClipGradNorm,
    KLWarmup,
    LearningRate,
    SoftFreeBits,
    WeightAverage,
    fit,
)
from pyro_vaes.infer.engines import compiler, modes
from pyro_vaes.nn import MLP
from tests.infer.pairs import D, binary, binary_vae, losses, same, weights
from tests.infer.test_fit import enumerated_pair

x = binary(8 * 20 + 3)
needs_compiler = pytest.mark.skipif(compiler.missing_compiler("cpu") != "", reason="there is no C++ compiler")


def train(mode, *, callbacks=(), build=binary_vae, epochs=10, **options):
    vae = build()
    settings = {"batch_size": 8, "seed": 5, "progress": False} | options
    made = [make() for make in callbacks]
    history = fit(vae.model, vae.guide, x, epochs=epochs, compile=mode, callbacks=made, **settings)
    return weights(vae), history


def equal(one, two):
    return same(one[0], two[0]) and losses(one[1]) == losses(two[1])


def adversarial():
    torch.manual_seed(3)
    return Adversarial_ELBO(Trace_ELBO(), MLP(D, [8], 1), weight=1.0)


WARM = (lambda: KLWarmup(150), lambda: ClipGradNorm(0.5))
RUNS = {
    "warm-up and clipping": {"callbacks": WARM},
    "batch norm": {"build": lambda: binary_vae(middle=nn.BatchNorm1d(8)), "drop_last": True},
    "dropout": {"build": lambda: binary_vae(middle=nn.Dropout(0.3))},
    "weight decay": {"optim": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)},
    "SGD and a schedule": {
        "optim": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
        "callbacks": [lambda: LearningRate(lambda o: torch.optim.lr_scheduler.StepLR(o, 3), per_step=True)],
    },
    "weight average": {"callbacks": [lambda: WeightAverage(0.9)], "valid": x[:16]},
    "soft free bits": {"callbacks": [lambda: SoftFreeBits(0.1, lambda: 1.0, every=10)]},
    "adversary": {"loss": adversarial},
}


@pytest.mark.parametrize("name", RUNS)
def test_c2_captured_training_equals_eager_training(name):
    options = dict(RUNS[name])
    found = []
    for mode in (False, "capture"):
        loss = options.get("loss")
        given = options | ({"loss": loss()} if loss else {})
        found.append(train(mode, **given))
    assert equal(*found)
    assert found[1][1].engine == "captured" and found[1][1].engine_note == ""


def test_c2_enumerated_sites():
    """To rounding: a graph sums the costs of probability zero as well."""
    ends = []
    for mode in (False, "capture"):
        torch.manual_seed(0)
        model, guide, networks = enumerated_pair()
        loss = TraceEnum_ELBO(max_plate_nesting=1)
        history = fit(model, guide, x, loss=loss, epochs=2, seed=1, progress=False, compile=mode, batch_size=8)
        ends.append((weights(networks), history))
        pyro.clear_param_store()
    (wanted, eager), (found, captured) = ends
    assert captured.engine == "captured" and captured.train == pytest.approx(eager.train, rel=1e-6)
    for name, tensor in wanted.items():
        assert (tensor - found[name]).abs().max() < 1e-6


def test_c2_steps_that_are_not_finite_change_nothing():
    class Spoils(Callback):
        """Makes one loss infinite."""

        def handler(self, run):
            return pyro.poutine.scale(scale=float("inf") if run.step == 30 else 1.0)

    runs = [train(mode, callbacks=[Spoils], on_nan="skip", epochs=4) for mode in (False, "capture")]
    assert equal(*runs) and runs[1][1].skipped == 1


def test_auto_records_where_the_steps_earn_it_back(monkeypatch):
    assert train("auto", epochs=2)[1].engine == "eager"
    monkeypatch.setattr(modes, "STEPS_THAT_PAY", 60)
    weights_, history = train("auto", epochs=4)
    assert history.engine == "captured" and "too few to earn back the compilation" in history.engine_note
    assert same(weights_, train(False, epochs=4)[0])


@pytest.mark.parametrize("mode", ["capture", pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
def test_c3_a_killed_run_resumes_to_the_same_numbers(mode, tmp_path):
    class Killed(Callback):
        def stepped(self, run):
            if run.step == 50:
                raise KeyboardInterrupt

    options = {"callbacks": WARM, "epochs": 4, "drop_last": True}
    whole = train(mode, **options)
    with pytest.raises(KeyboardInterrupt):
        train(mode, **options | {"callbacks": (*WARM, Killed)}, checkpoint=tmp_path)
    resumed = train(mode, **options | {"callbacks": (*WARM, Callback)}, checkpoint=tmp_path, resume=True)
    assert equal(whole, resumed)
    assert resumed[1].engine == ("captured" if mode == "capture" else "compiled")


@needs_compiler
@pytest.mark.slow
def test_c2_compiled_training_is_eager_training_up_to_rounding():
    options = {"callbacks": WARM, "epochs": 10}
    eager, compiled = train(False, **options), train(True, **options)
    assert compiled[1].engine == "compiled" and compiled[1].engine_note == ""
    for name, tensor in eager[0].items():
        assert (tensor - compiled[0][name]).abs().max() < 1e-5
    assert compiled[1].train == pytest.approx(eager[1].train, rel=1e-5)


@needs_compiler
@pytest.mark.slow
def test_c5_two_compiled_runs_of_one_shape_in_one_process():
    """Each has code of its own: torch must not take one's for the other's."""
    for seed in (1, 2):
        build = functools.partial(binary_vae, seed=seed)
        eager, compiled = (train(mode, build=build, epochs=2) for mode in (False, True))
        assert compiled[1].engine == "compiled"
        for name, tensor in eager[0].items():
            assert (tensor - compiled[0][name]).abs().max() < 1e-5


@needs_compiler
@pytest.mark.slow
def test_c2_compiled_in_double_precision():
    def build():
        vae = binary_vae()
        vae.double()
        return vae

    ends = []
    for mode in (False, True):
        vae = build()
        fit(vae.model, vae.guide, x.double(), epochs=5, batch_size=8, seed=5, progress=False, compile=mode)
        ends.append(weights(vae))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-10, atol=1e-12)


def test_c5_without_a_compiler_steps_are_captured(monkeypatch):
    compiler.missing_compiler.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    _, history = train(True, epochs=2)
    compiler.missing_compiler.cache_clear()
    assert history.engine == "captured"
    assert history.engine_note == "not compiled: there is no C++ compiler on the path (install g++ or clang)"
    assert "captured" in repr(history)


def test_c5_without_the_private_function_steps_are_eager(monkeypatch):
    monkeypatch.delattr("torch.fx.experimental.proxy_tensor.make_fx")
    _, history = train("capture", epochs=2)
    assert history.engine == "eager" and "this version of torch lacks" in history.engine_note


def test_c5_two_runs_in_turn_end_as_alone():
    alone = [train("capture", build=functools.partial(binary_vae, seed=seed), epochs=2)[0] for seed in (1, 2)]
    first, second = binary_vae(seed=1), binary_vae(seed=2)
    quick = {"batch_size": 8, "seed": 5, "progress": False, "compile": "capture", "epochs": 2}
    for vae in (first, second):
        fit(vae.model, vae.guide, x, **quick)
    assert same(weights(first), alone[0]) and same(weights(second), alone[1])


def test_fit_says_what_compile_may_be():
    with pytest.raises(ValueError, match=r"compile must be one of \['auto', 'capture', True, False\], but got 'fast'"):
        train("fast")


def test_graphs_die_with_their_run():
    import gc
    import weakref

    vae = binary_vae()
    fit(vae.model, vae.guide, x, batch_size=8, epochs=2, progress=False, compile="capture")
    alive = weakref.ref(vae.decoder)
    del vae
    gc.collect()
    assert alive() is None
