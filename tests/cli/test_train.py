"""`train`: what it writes, every name it knows, and runs that go on where they were interrupted."""

import json
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import typer

import pyro_vaes.data
from pyro_vaes.cli import Options, app, open_run
from pyro_vaes.cli.build import build_pair, load_run_data
from pyro_vaes.cli.names import (
    BOUNDS,
    GUIDES,
    LIKELIHOODS,
    MODELS,
    NETWORKS,
    suitable_likelihood,
)
from pyro_vaes.cli.training import train
from pyro_vaes.data import PixelInfo
from pyro_vaes.infer import ImportanceWeighted_ELBO, facts_of
from pyro_vaes.infer.training.fit import fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import DiscretizedLogisticMixtureLikelihood

SMALL = ["--hidden", "16,8", "--limit", "200", "--batch-size", "100"]
BASE = Options(limit=40, batch_size=40, epochs=1)


def test_run_directory_holds_what_is_needed_to_repeat_it(trained: Path):
    for name in ("run.json", "history.json", "loss.png", "reconstructions.png", "samples.png"):
        assert (trained / name).stat().st_size > 100, name
    assert (trained / "checkpoint" / "weights.safetensors").exists()
    facts = json.loads((trained / "run.json").read_text())
    assert facts["options"]["likelihood"] == "discretized_logistic_mixture"  # defaults are filled in
    assert facts["options"]["latent_dim"] == [3]
    assert facts["data"]["rows"] == {"train": 200, "valid": 180, "test": 180}
    assert set(facts["data"]["rows_sha256"]) == {"train", "valid", "test"}
    assert {"python", "torch", "pyro-ppl", "pyro-vaes", "arviz"} <= set(facts["versions"])
    history = json.loads((trained / "history.json").read_text())
    assert history["epochs"] == [1, 2] and len(history["valid"]) == 2


def test_recorded_command_repeats_the_run(trained: Path, tmp_path: Path, command):
    words = json.loads((trained / "run.json").read_text())["command"].split()
    assert words[:2] == ["pyro-vaes", "train"]
    again = command(*words[1 : words.index("--out")], "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert same_numbers(trained, tmp_path / "again")


def same_numbers(one: Path, other: Path) -> bool:
    """Whether two runs have the same losses and bit-equal weights."""
    histories = [json.loads((run / "history.json").read_text()) for run in (one, other)]
    weights = [open_run(run).vae.state_dict() for run in (one, other)]
    losses = [(h["epochs"], h["train"], h["valid"]) for h in histories]
    return losses[0] == losses[1] and all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def seconds(run: Path) -> list[float]:
    """What each epoch took: the numbers that training once more would not reproduce."""
    return json.loads((run / "history.json").read_text())["seconds"]


def test_resuming_for_more_epochs_equals_one_go(trained: Path, tmp_path: Path, command):
    out = tmp_path / "run"
    first = command("train", "digits", *SMALL, "--latent-dim", 3, "--epochs", 1, "--out", out)
    assert first.exit_code == 0, first.output
    took = seconds(out)
    second = command("train", "--resume", "--epochs", 2, "--out", out)
    assert second.exit_code == 0, second.output
    assert same_numbers(trained, out)
    assert seconds(out)[:1] == took  # the first epoch was not trained again


def test_interrupted_run_resumes_to_the_same_numbers(trained: Path, tmp_path: Path, command, monkeypatch):
    from pyro_vaes.infer import ClipGradNorm

    words = [*SMALL, "--latent-dim", 3, "--epochs", 2, "--clip", 1e9]  # a norm that changes nothing

    def interrupt(self, run, parameters):
        if run.epoch == 1 and run.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClipGradNorm, "gradients", interrupt)
        assert command("train", "digits", *words, "--out", tmp_path / "cut").exit_code != 0
    assert not (tmp_path / "cut" / "history.json").exists()
    took = json.loads((tmp_path / "cut" / "checkpoint" / "pair.json").read_text())["history"]["seconds"]
    assert command("train", "--resume", "--out", tmp_path / "cut").exit_code == 0
    assert command("train", "digits", *words, "--out", tmp_path / "whole").exit_code == 0
    assert same_numbers(tmp_path / "cut", tmp_path / "whole")
    assert len(took) == 1 and seconds(tmp_path / "cut")[:1] == took


def test_open_run_gives_objects_and_leaves_generators_alone(trained: Path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run = open_run(trained)
    assert torch.equal(before, torch.get_rng_state())
    assert run.vae.latent_dim == 3
    assert run.model.__self__ is run.vae and run.guide.__self__ is run.vae
    assert len(run.data.train) == 200 and len(run.history) == 2
    weights = build_pair(run.options, run.data).vae.state_dict()  # the initial ones
    assert any(not torch.equal(weights[n], t) for n, t in run.vae.state_dict().items())


def one_step(options: Options) -> float:
    """The training loss of one step, through the table."""
    data = load_run_data(options)
    options = options.resolved(data)
    built = build_pair(options, data)
    history = fit(
        built.model,
        built.guide,
        data.take(40, 20, 20),
        loss=options.loss(),
        epochs=1,
        batch_size=40,
        seed=0,
        progress=False,
    )
    return history.train[0]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood(likelihood: str):
    options = replace(BASE, likelihood=likelihood, binarize=likelihood == "bernoulli", hidden=(8,), latent_dim=(2,))
    loss = one_step(options)
    assert torch.isfinite(torch.tensor(loss))
    if LIKELIHOODS[likelihood].discrete:
        assert loss > 0  # a probability is at most 1


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_model_network_and_guide(model: str, network: str, guide: str):
    hidden = () if network == "linear" else (8, 4)
    assert abs(one_step(replace(BASE, model=model, network=network, guide=guide, hidden=hidden))) < 1e4


@pytest.mark.parametrize("bound", BOUNDS)
def test_every_bound(bound: str):
    assert abs(one_step(replace(BASE, bound=bound, hidden=(8,), latent_dim=(2,), particles=2))) < 1e4


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_hierarchy(network: str, skip: bool, top_down: bool):
    options = replace(BASE, model="hierarchical_vae", network=network, hidden=(8, 4), latent_dim=(4, 3, 2))
    assert abs(one_step(replace(options, skip=skip, top_down=top_down))) < 1e4


def test_counts_reach_the_networks_as_numbers_up_to_one():
    options = replace(BASE, likelihood="poisson", latent_dim=(2,))
    data = load_run_data(options)
    assert data.value_range == (0.0, 16.0)
    trunk = build_pair(options.resolved(data), data).vae.encoder[0]
    x = data.train[:5]
    assert torch.equal(trunk(x), trunk.net(x / 16))


@pytest.mark.parametrize(
    "words", [["--kl-warmup", 1, "--clip", 5, "--patience", 1], ["--bound", "importance_weighted", "--particles", 3]]
)
def test_schedules(tmp_path: Path, command, words: list[object]):
    result = command("train", "digits", *SMALL, "--epochs", 2, *words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output


def test_overwrite_keeps_what_the_run_did_not_write(copied: Path, command):
    mine = ("notes.txt", "mine.png", "fives.png", "posterior_z_1_mine.png")
    for name in mine:
        (copied / name).write_text("mine")
    (copied / "ppc.png").write_text("of a report")
    result = command("train", "digits", *SMALL, "--epochs", 1, "--out", copied, "--overwrite")
    assert result.exit_code == 0, result.output
    assert all((copied / name).read_text() == "mine" for name in mine)
    assert not (copied / "ppc.png").exists()
    assert not [p.name for p in copied.iterdir() if p.name.startswith(".")]
    assert len(open_run(copied).history) == 1


def test_kl_can_be_weighed_where_there_is_one():
    for entry in BOUNDS.values():
        bound = entry.build(5, 0.5)
        assert facts_of(bound).has_kl != isinstance(bound, ImportanceWeighted_ELBO)


@pytest.mark.parametrize("bound", BOUNDS)
def test_kl_warmup_is_refused_where_there_is_no_kl(bound: str):
    if facts_of(Options(bound=bound).loss()).has_kl:
        assert Options(bound=bound, kl_warmup=1).kl_warmup == 1
    else:
        with pytest.raises(ValueError, match=f"which --bound {bound} has not"):
            Options(bound=bound, kl_warmup=1)


@pytest.mark.parametrize(
    ("info", "likelihood"),
    [
        (PixelInfo(0.0, 1.0, 17), "discretized_logistic_mixture"),
        (PixelInfo(0.0, 1.0, 256), "discretized_logistic_mixture"),
        (PixelInfo(0.0, 1.0, 2**16), "discretized_logistic_mixture"),
        (PixelInfo(0.0, 1.0, 10**6), "continuous_bernoulli"),
        (PixelInfo(0.0, 1.0, 2), "bernoulli"),
        (PixelInfo(0.0, 1.0, None), "continuous_bernoulli"),
        (PixelInfo(-1.0, 1.0, 256), "gaussian"),
        (PixelInfo(0.0, 3.0, None), "gaussian"),
    ],
)
def test_the_default_likelihood_suits_the_pixels(info: PixelInfo, likelihood: str):
    assert suitable_likelihood(info) == likelihood


def test_the_default_likelihood_suits_the_laplace_guide():
    grey = PixelInfo(0.0, 1.0, 17)
    assert suitable_likelihood(grey, "amortized_laplace") == "continuous_bernoulli"


def test_pixels_with_levels_get_a_probability_of_these_levels():
    data = load_run_data(BASE)
    likelihood = build_pair(BASE.resolved(data), data).vae.likelihood
    assert isinstance(likelihood, DiscretizedLogisticMixtureLikelihood)
    assert likelihood.num_levels == data.info.levels == 17

    parameters = torch.randn(4, likelihood.num_params * 64)
    levels = torch.arange(17).div(16).reshape(17, 1, 1).expand(17, 4, 64)
    pixels = likelihood(parameters).base_dist
    total = pixels.log_prob(levels).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4, 64))


def test_own_array_file(tmp_path: Path, command):
    import numpy as np

    x = np.random.default_rng(0).normal(size=(60, 3, 4, 5)).astype("float32")
    np.savez(tmp_path / "own.npz", x=x.reshape(60, -1), other=x)
    words = ["--key", "x", "--image-shape", "3,4,5"]
    result = command("train", tmp_path / "own.npz", *words, "--hidden", 8, "--epochs", 1, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert open_run(tmp_path / "run").options.likelihood == "gaussian"
    assert open_run(tmp_path / "run").data.image_shape == (3, 4, 5)


def test_data_are_loaded_once_and_the_pair_is_built_once(tmp_path: Path, command):
    words = [*SMALL, "--latent-dim", 2, "--epochs", 1]
    for given in (["digits", *words], ["--resume", "--epochs", 2]):
        with (
            mock.patch("pyro_vaes.cli.build.load_data", wraps=pyro_vaes.data.load_data) as loaded,
            mock.patch("pyro_vaes.cli.build.VAE", wraps=VAE) as built,
        ):
            result = command("train", *given, "--out", tmp_path / "run")
        assert result.exit_code == 0, result.output
        assert (loaded.call_count, built.call_count) == (1, 1)


def test_the_run_that_training_returns_is_the_one_that_is_opened(tmp_path: Path):
    options = replace(BASE, hidden=(8,), latent_dim=(2,), epochs=3, patience=1, lr=0.05)
    run = train(options, tmp_path / "run", progress=False)
    opened = open_run(tmp_path / "run")
    assert run.options == opened.options and run.facts == opened.facts
    assert run.history.to_dict() == opened.history.to_dict()
    weights = opened.vae.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.vae.state_dict().items())


def test_every_field_of_the_options_is_an_option_with_its_default():
    parameters = {p.name: p for p in typer.main.get_command(app).commands["train"].params}
    for field in fields(Options):
        parameter = parameters.pop(field.name)
        assert parameter.default == (None if field.default == () else field.default)
        assert parameter.help.endswith("."), field.name
    assert {"out", "resume", "overwrite"} <= set(parameters) <= {"out", "resume", "overwrite", "help"}


def test_resuming_on_changed_data_is_refused_before_training(tmp_path: Path, command):
    import numpy as np

    rows = np.random.default_rng(0).random((30, 4, 4)).astype("float32")
    np.save(tmp_path / "own.npy", rows)
    out = tmp_path / "run"
    assert command("train", tmp_path / "own.npy", "--hidden", 4, "--epochs", 1, "--out", out).exit_code == 0
    np.save(tmp_path / "own.npy", rows[::-1])
    result = command("train", "--resume", "--epochs", 2, "--out", out)
    assert result.exit_code == 2 and "data have changed" in result.stderr
    assert len(json.loads((out / "history.json").read_text())["epochs"]) == 1
