"""Checkpoints: no pickle, atomic, and a killed run that resumes ends with the numbers of an uninterrupted one."""

import functools
import json
import os
import pathlib
import pickletools
import runpy
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import pyro
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from pyro_vaes.guides import AmortizedNormal
from pyro_vaes.infer import EarlyStopping, KLWarmup, LearningRate, evaluate, fit, load_weights, save_weights
from pyro_vaes.infer.training.checkpoint import read_checkpoint
from pyro_vaes.nn import MLP, Chain, NormalHead
from tests.infer.pairs import D, binary, binary_vae, losses, param_pair, same, weights

ROOT = pathlib.Path(__file__).parents[2]
quick = functools.partial(fit, epochs=4, batch_size=32, seed=5, progress=False)


class Interrupted(Exception):
    pass


def interrupt_in(epoch, batches=2):
    """Data whose third batch of an epoch never comes: as far as fit can tell, the process dies there."""

    class Source:
        def __init__(self, x):
            self.x, self.calls = x, 0

        def __len__(self):
            return len(self.x)

        def to(self, device):
            return self

        def batch(self, index, generator=None):
            self.calls += generator is not None
            if self.calls > 1 + 3 * epoch + batches:  # one call looks at the first batch beforehand
                raise Interrupted
            return (self.x[index],)

    return Source(binary())


@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_resume_is_exact(tmp_path, interrupted):
    def start():
        vae = binary_vae(middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.2)))
        callbacks = [
            EarlyStopping(2),
            LearningRate(lambda o: schedules.CosineAnnealingLR(o, 10)),
            KLWarmup(9),
        ]
        return vae, callbacks

    whole, callbacks = start()
    wanted = quick(
        whole.model, whole.guide, binary(), valid=binary(50), callbacks=callbacks, checkpoint=tmp_path / "whole"
    )
    vae, callbacks = start()
    with pytest.raises(Interrupted):
        data = interrupt_in(interrupted)
        quick(vae.model, vae.guide, data, valid=binary(50), callbacks=callbacks, checkpoint=tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")[1]["epoch"] == interrupted
    vae, callbacks = start()
    pyro.set_rng_seed(1234)
    got = quick(
        vae.model, vae.guide, binary(), valid=binary(50), callbacks=callbacks,
        checkpoint=tmp_path / "run", resume=True, seed=None,
    )  # fmt: skip
    assert same(weights(vae), weights(whole)) and losses(got) == losses(wanted) and got.best_epoch == wanted.best_epoch
    (_, facts, training), (_, other_facts, other) = (read_checkpoint(tmp_path / n) for n in ("run", "whole"))
    assert facts["step"] == other_facts["step"] == 12
    for name, value in training["optimizer"]["state"].items():
        assert same(value, other["optimizer"]["state"][name])
    assert str(training["callbacks"]) == str(other["callbacks"])


SCRIPT = """
    import sys
    import torch
    from torch import nn
    from tests.infer.pairs import binary_vae
    from pyro_vaes.data import Binarize, from_tensors
    from pyro_vaes.infer import EarlyStopping, KLWarmup, fit

    torch.set_num_threads(1)
    vae = binary_vae(middle=nn.Dropout(0.1))
    grey = torch.rand(700, 12, generator=torch.Generator().manual_seed(0))
    data = from_tensors(grey).preprocess(Binarize())
    fit(vae.model, vae.guide, data, epochs=int(sys.argv[2]), batch_size=64, seed=3, checkpoint=sys.argv[1],
        resume=True, progress=False, callbacks=[EarlyStopping(10**6), KLWarmup(100)],
        compile="capture")  # by itself a run of 100,000 epochs would be compiled, a short one not
"""


@pytest.mark.slow
def test_killed_for_real_and_resumed(tmp_path, monkeypatch):
    """SIGKILL while it trains with fresh binarisation noise; the resumed run ends bit-equal to an uninterrupted one."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def train(name, epochs):
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / name), str(epochs)])
        runpy.run_path(str(script), run_name="__main__")
        return read_checkpoint(tmp_path / name)

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "killed"), "100000"]
    with subprocess.Popen(command, env=environment) as victim:
        give_up = time.monotonic() + 120
        while victim.poll() is None and time.monotonic() < give_up and not (tmp_path / "killed" / "pair.json").exists():
            time.sleep(0.005)
        time.sleep(0.03)
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    reached = read_checkpoint(tmp_path / "killed")[1]["epoch"]
    state, facts, training = train("killed", reached + 2)
    wanted, wanted_facts, other = train("whole", reached + 2)
    assert facts["epoch"] == reached + 2 and same(state, wanted)
    for key in ("train", "valid", "grad_norm", "learning_rate", "best_epoch"):
        assert facts["history"][key] == wanted_facts["history"][key]
    for name, value in training["optimizer"]["state"].items():
        assert same(value, other["optimizer"]["state"][name])


def test_a_finished_run_goes_on(tmp_path):
    """Early stopping restores the best weights for use, but a run that is prolonged goes on from the last ones."""
    ends = []
    for stages in ([6], [3, 6]):
        for epochs in stages:
            vae = binary_vae()
            x = binary() * binary(seed=2)  # mostly black: fitting it is unfitting what is mostly white
            history = quick(
                vae.model, vae.guide, x, epochs=epochs, optim=functools.partial(torch.optim.Adam, lr=0.1),
                valid=1 - x, callbacks=[EarlyStopping(50)], checkpoint=tmp_path / str(len(stages)), resume=True,
            )  # fmt: skip
        assert history.best_epoch < epochs  # else there is nothing to see
        ends.append((weights(vae), losses(history)))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_a_loader_with_a_generator_of_its_own_resumes(tmp_path):
    def run(name, epochs):
        vae = binary_vae()
        generator = torch.Generator().manual_seed(8)
        loader = DataLoader(TensorDataset(binary()), batch_size=32, shuffle=True, generator=generator)
        quick(vae.model, vae.guide, loader, epochs=epochs, checkpoint=tmp_path / name, resume=True)
        return weights(vae)

    wanted = run("whole", 4)
    run("parts", 2)
    assert same(run("parts", 4), wanted)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: schedules.MultiStepLR(o, [1, 3], 0.5),
        lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o), schedules.ExponentialLR(o, 0.9)], [2]),
        lambda o: schedules.ReduceLROnPlateau(o, patience=0, threshold=5.0),
        lambda o: schedules.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    ],
)
def test_schedules_resume(tmp_path, schedule):
    def run(name, epochs):
        vae = binary_vae()
        return quick(
            vae.model, vae.guide, binary(), epochs=epochs, callbacks=[LearningRate(schedule)],
            checkpoint=tmp_path / name, resume=True,
        ).learning_rate  # fmt: skip

    wanted = run("whole", 5)
    run("parts", 2)
    assert run("parts", 5) == wanted and len(set(wanted)) > 1


def test_files_and_no_pickle(tmp_path):
    vae = binary_vae(middle=nn.BatchNorm1d(8))
    quick(vae.model, vae.guide, binary(), checkpoint=tmp_path / "run", callbacks=[EarlyStopping()], valid=binary())
    run = tmp_path / "run"
    assert {f.name for f in run.iterdir()} == {"weights.safetensors", "pair.json", "training.pt"}
    assert [f.name for f in tmp_path.iterdir()] == ["run"]
    assert any(name.endswith("running_mean") for name in load_file(run / "weights.safetensors"))
    facts = json.loads((run / "pair.json").read_text())
    assert facts["epoch"] == 4 and facts["seed"] == 5 and len(facts["history"]["train"]) == 4
    assert facts["versions"].keys() == {"torch", "pyro"}
    torch.load(run / "training.pt", weights_only=True)
    with zipfile.ZipFile(run / "training.pt") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        called = {str(arg) for op, arg, _ in pickletools.genops(archive.read(name)) if op.name == "GLOBAL"}
    assert called <= {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | {
        f"torch {kind}Storage" for kind in ("Float", "Double", "Long", "Byte", "Int")
    }


def test_a_kill_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    vae = binary_vae()
    quick(vae.model, vae.guide, binary(), epochs=1, checkpoint=tmp_path / "run")
    before = read_checkpoint(tmp_path / "run")
    rename, renames = pathlib.Path.rename, []

    def killed(self, target):
        renames.append(target)
        if len(renames) == 2:
            raise Interrupted
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", killed)
    with pytest.raises(Interrupted):
        quick(vae.model, vae.guide, binary(), epochs=2, checkpoint=tmp_path / "run", resume=True)
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()
    after = read_checkpoint(tmp_path / "run")
    assert same(after[0], before[0]) and after[1]["epoch"] == 1
    fresh = binary_vae()
    history = quick(fresh.model, fresh.guide, binary(), epochs=2, checkpoint=tmp_path / "run", resume=True)
    assert len(history) == 2 and [f.name for f in tmp_path.iterdir()] == ["run"]


def test_other_files_are_never_replaced(tmp_path):
    vae = binary_vae()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\).*of its own"):
        quick(vae.model, vae.guide, binary(), checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"holds other files"):
        save_weights(tmp_path, vae.model, vae.guide)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["weights.safetensors", "pair.json", "training.pt"])
@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
def test_damaged_files(tmp_path, name, how):
    vae = binary_vae()
    quick(vae.model, vae.guide, binary(), epochs=1, checkpoint=tmp_path / "run")
    before, file = weights(vae), tmp_path / "run" / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if how == "truncated" else b"\xff" + content[1:])
    for use in (
        lambda: load_weights(tmp_path / "run", vae.model, vae.guide),
        lambda: quick(vae.model, vae.guide, binary(), checkpoint=tmp_path / "run", resume=True),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=r"damaged.*train again|no checkpoint in.*path right"):
            use()
    assert same(weights(vae), before)


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": 3}', '{"sha256": {}}'])
def test_json_of_something_else(tmp_path, content):
    vae = binary_vae()
    save_weights(tmp_path / "run", vae.model, vae.guide)
    (tmp_path / "run" / "pair.json").write_text(content)
    with pytest.raises(ValueError, match="does not say which files"):
        load_weights(tmp_path / "run", vae.model, vae.guide)


def test_resume_from_something_else(tmp_path):
    vae = binary_vae()
    resume = functools.partial(quick, vae.model, vae.guide, binary(), checkpoint=tmp_path / "run", resume=True)
    save_weights(tmp_path / "run", vae.model, vae.guide)
    with pytest.raises(ValueError, match=r"weights but no training state.*start a new run"):
        resume()
    quick(vae.model, vae.guide, binary(), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="0 callbacks, but now there are 1"):
        resume(callbacks=[KLWarmup(3)])
    facts = tmp_path / "run" / "pair.json"
    facts.write_text(json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k != "step"}))
    with pytest.raises(ValueError, match=r"lacks what a run needs.*step"):
        resume()
    other = binary_vae(latent_dim=3)
    with pytest.raises(ValueError, match=r"other shapes.*saved \(2, 8\), here \(3, 8\)"):
        quick(other.model, other.guide, binary(), checkpoint=tmp_path / "run", resume=True)
    vae.decoder.requires_grad_(False)
    with pytest.raises(ValueError, match="other parameters"):
        resume()


def test_resume_with_another_optimiser(tmp_path):
    """Its state means nothing to another one; checkpoints that do not name theirs are taken as they are."""
    vae = binary_vae()
    resume = functools.partial(quick, vae.model, vae.guide, binary(), checkpoint=tmp_path / "run", resume=True)
    resume(epochs=1)
    before = weights(vae)
    for optim, name in ((torch.optim.SGD, "SGD"), (torch.optim.AdamW, "AdamW")):
        with pytest.raises(
            ValueError, match=rf"written with Adam, but optim gives {name}: resume with the same, or load"
        ):
            resume(optim=functools.partial(optim, lr=0.1))
    assert same(weights(vae), before)
    facts = tmp_path / "run" / "pair.json"
    content = json.loads(facts.read_text())
    assert content.pop("optimizer") == "Adam"
    facts.write_text(json.dumps(content))
    assert resume(epochs=2, optim=functools.partial(torch.optim.Adam, lr=0.1)).learning_rate == [1e-3, 1e-3]


def test_unwritable_places(tmp_path):
    vae = binary_vae()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run", pathlib.Path("/proc/run")):
        with pytest.raises(ValueError, match=r"directory is wanted|directory you may write to"):
            quick(vae.model, vae.guide, binary(), checkpoint=place)
    with pytest.raises(ValueError, match="directory that you may write to"):
        save_weights("/proc/run", vae.model, vae.guide)


def test_save_and_load_with_buffers(tmp_path):
    vae, other = binary_vae(middle=nn.BatchNorm1d(8)), binary_vae(middle=nn.BatchNorm1d(8), seed=1)
    quick(vae.model, vae.guide, binary())
    save_weights(tmp_path / "pair", vae.model, vae.guide)
    assert not same(weights(vae), weights(other))
    load_weights(tmp_path / "pair", other.model, other.guide)
    assert same(weights(vae), weights(other))
    assert evaluate(vae.model, vae.guide, binary()) == evaluate(other.model, other.guide, binary())


def test_save_and_load_param_statements(tmp_path):
    model, guide = param_pair()
    x = torch.randn(40, D)
    quick(model, guide, x)
    wanted = evaluate(model, guide, x)
    values = {n: v.clone() for n, v in pyro.get_param_store().items()}
    save_weights(tmp_path / "pair", model, guide, x)
    assert set(load_file(tmp_path / "pair" / "weights.safetensors")) == {"param.weight", "param.scale", "param.back"}
    pyro.clear_param_store()
    load_weights(tmp_path / "pair", model, guide, x)
    assert all(torch.equal(values[n], v) for n, v in pyro.get_param_store().items())
    assert evaluate(model, guide, x) == wanted
    with pytest.raises(ValueError, match="pass the arguments of one batch"):
        save_weights(tmp_path / "pair", model, guide)


def test_save_and_load_lazily_built_guides(tmp_path):
    x = binary()

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.LazyLinear(2)

        def forward(self, x):
            loc = self.loc(x)
            return loc, torch.ones_like(loc)

    vae = binary_vae()
    guides = [AmortizedNormal(vae.model, Chain(MLP(D, [8], 8), NormalHead(8, 2))) for _ in range(2)]
    save_weights(tmp_path / "eager", vae.model, guides[0])
    load_weights(tmp_path / "eager", vae.model, guides[1])
    assert same(weights(guides[0]), weights(guides[1]))
    lazy = [AmortizedNormal(vae.model, Normalised(Lazy())) for _ in range(2)]
    save_weights(tmp_path / "lazy", vae.model, lazy[0], x)
    load_weights(tmp_path / "lazy", vae.model, lazy[1], x)
    assert same(weights(lazy[0]), weights(lazy[1]))


class Normalised(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        loc, scale = self.net(x)
        return pyro.distributions.Normal(loc, scale).to_event(1)


def test_load_into_another_pair_is_refused(tmp_path):
    vae, wide, normed = binary_vae(), binary_vae(latent_dim=3), binary_vae(middle=nn.BatchNorm1d(8))
    save_weights(tmp_path / "pair", vae.model, vae.guide)
    for other, said in ((wide, "other shapes"), (normed, "missing.*unexpected")):
        before = weights(other)
        with pytest.raises(ValueError, match=said):
            load_weights(tmp_path / "pair", other.model, other.guide)
        assert same(weights(other), before)
    with pytest.raises(FileNotFoundError, match="Is the path right"):
        load_weights(tmp_path / "nothing", vae.model, vae.guide)
