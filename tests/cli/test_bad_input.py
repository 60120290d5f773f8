"""What a user can get wrong: exit code 2, one paragraph on stderr that names the cure, nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

TRAIN = ("train", "digits", "--epochs", "1")


def refused(result, *wanted: str) -> None:
    assert result.exit_code == 2, result.output
    message = result.stderr
    assert "Traceback" not in message
    assert message.startswith("Error: ") and message.strip().count("\n") == 0
    for words in wanted:
        assert words in message, message


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--model", "vea"], "did you mean 'vae'"),
        (["--network", "cnv"], "did you mean 'conv'"),
        (["--likelihood", "gausian"], "did you mean 'gaussian'"),
        (["--guide", "amortised_normal"], "did you mean 'amortized_normal'"),
        (["--bound", "mean-feild"], "did you mean 'mean_field'"),
        (["--on-nan", "rais"], "did you mean 'raise'"),
        (["--latent-dim", "two"], "--latent-dim takes"),
        (["--latent-dim", "8,4"], "hierarchical_vae"),
        (["--image-shape", "1,28"], "channels, height and width"),
        (["--image-shape", "1,8,8"], "not a file of arrays"),
        (["--hidden", "0"], "--hidden takes"),
        (["--network", "linear", "--hidden", "5"], "Leave out --hidden, or pass --network mlp."),
        (["--epochs", "0"], "--epochs is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--lr", "-1"], "--lr is -1"),
        (["--clip", "-1"], "--clip is -1"),
        (["--skip"], "--model hierarchical_vae"),
        (["--likelihood", "bernoulli"], "--binarize"),
        (["--device", "abacus"], "--device abacus"),
        (["--model", "hierarchical_vae", "--bound", "mean_field"], "Choose --bound trace, or add --top-down."),
        (["--bound", "dreg", "--kl-warmup", "3"], "which --bound dreg has not: leave it out, or choose --bound trace."),
        (["--bound", "aggregate_posterior", "--batch-size", "1"], "Choose another --batch-size"),
        (["--key", "a", "--image-shape", "1,8,8"], "Leave out --key and --image-shape."),
    ],
)
def test_options(words: list[str], wanted: str, tmp_path: Path, command):
    refused(command(*TRAIN, *words, "--out", tmp_path / "run"), wanted)
    assert not (tmp_path / "run").exists()


def test_unknown_data_suggests_the_nearest(tmp_path: Path, command):
    refused(command("train", "digts", "--out", tmp_path / "run"), "did you mean 'digits'")
    refused(command("train", tmp_path / "no.npy", "--out", tmp_path / "run"), "no.npy")
    assert not (tmp_path / "run").exists()


def test_data_that_the_model_cannot_use(tmp_path: Path, command):
    rows = np.random.default_rng(0).random((30, 4, 4)).astype("float32")
    np.save(tmp_path / "grey.npy", rows)
    out = ("--out", tmp_path / "run")
    refused(command("train", tmp_path / "grey.npy", "--model", "conditional_vae", *out), "no")
    refused(command("train", tmp_path / "grey.npy", "--likelihood", "categorical", *out), "continuous")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    refused(command("train", tmp_path / "text.npy", *out))


def test_cures_are_options(tmp_path: Path, command):
    rows = np.random.default_rng(0).random((30, 4, 4)).astype("float32")
    np.savez(tmp_path / "two.npz", a=rows, b=rows)
    np.savez(tmp_path / "part.npz", x_train=rows, y_train=np.arange(30) % 3, x_test=rows)
    np.save(tmp_path / "flat.npy", rows.reshape(30, 16))
    np.save(tmp_path / "odd.npy", rows.reshape(30, 2, 4, 2))
    (tmp_path / "image_shape.txt").write_text("no image")
    (tmp_path / "sizes").mkdir()
    plt.imsave(tmp_path / "sizes" / "a.png", rows[0])
    plt.imsave(tmp_path / "sizes" / "b.png", rows[0, :3])
    for name, *words, wanted in (
        ("two.npz", "holds the images. Pass --key a, for instance."),
        ("part.npz", "--model", "conditional_vae", "cannot be made. Choose --model vae, or give labels to all parts."),
        (
            "flat.npy",
            "--image-shape",
            "1,3,3",
            "has 9. Pass --image-shape C,H,W with the shape of one image.",
        ),
        ("odd.npy", "Transpose the array, or pass --image-shape C,H,W if"),
        ("image_shape.txt", f"{tmp_path}/image_shape.txt is"),
        ("image_shape.txt", "For other formats read the array yourself and save it as .npz."),
        ("sizes", "Pass --resize 64, for instance."),
    ):
        refused(command("train", tmp_path / name, *words, "--out", tmp_path / "run"), wanted)
    out = ("--root", tmp_path / "no", "--out", tmp_path / "run")
    faces = (
        "Pass --root or set the environment variable PYRO_VAES_DATA to",
        "or start with `pyro-vaes train digits`, which",
    )
    refused(command("train", "frey_faces", *out), *faces)
    refused(command("train", "celeba", *out), "so a size has to be given. Pass --resize 64, which takes 2.5 GB.")
    (tmp_path / "no" / "FreyFaces").mkdir(parents=True)
    (tmp_path / "no" / "FreyFaces" / "frey_rawface.mat").write_text("no faces")
    refused(command("train", "frey_faces", *out), "altered. Copy or download it again.")
    refused(command("train", tmp_path / "file" / "no.npy", *out), "no.npy")
    assert not (tmp_path / "run").exists()


def test_divergence(tmp_path: Path, command):
    result = command(*TRAIN, "--lr", "1e6", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "Add --clip, add --kl-warmup, choose a smaller --lr, or pass --on-nan skip." in result.stderr
    assert not (tmp_path / "run").exists(), "nothing is there to go on from"


def test_unwritable_out(tmp_path: Path, command):
    (tmp_path / "file").write_text("")
    refused(command(*TRAIN, "--out", tmp_path / "file" / "run"), "choose an --out")


def test_taken_out(trained: Path, command):
    before = (trained / "run.json").read_bytes()
    refused(command(*TRAIN, "--out", trained), "--resume", "--overwrite")
    assert (trained / "run.json").read_bytes() == before


def test_refused_training_leaves_everything_as_it_was(copied: Path, tmp_path: Path, command):
    def content(run: Path) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    bad = ("--bound", "aggregate_posterior", "--batch-size", "1")
    new = tmp_path / "new" / "run"
    refused(command(*TRAIN, *bad, "--out", new))
    assert not new.parent.exists()
    new.mkdir(parents=True)
    (new / "notes.txt").write_text("mine")
    refused(command(*TRAIN, *bad, "--out", new))
    assert [p.name for p in new.iterdir()] == ["notes.txt"]
    before = content(copied)
    refused(command(*TRAIN, *bad, "--out", copied, "--overwrite"))
    assert content(copied) == before
    assert command(*TRAIN, "--limit", 100, "--out", new).exit_code == 0, "the corrected command"


def test_run_without_a_finished_epoch(copied: Path, command):
    shutil.rmtree(copied / "checkpoint")
    message = f"the run in {copied} has no checkpoint of a finished epoch yet: go on with "
    cure = f"`pyro-vaes train --resume --out {copied}`, or start again with --overwrite."
    message = f"the run in {copied} has no checkpoint of a finished epoch yet: go on with {cure}"
    refused(command("evaluate", copied), message)


@pytest.mark.parametrize("name", ["evaluate", "sample", "report"])
def test_missing_run(name: str, trained: Path, command):
    refused(command(name, trained.parent / "rnu"), "there is no run in", str(trained))


def test_resume_without_a_run(tmp_path: Path, command):
    refused(command("train", "--resume", "--out", tmp_path / "run"), "there is no run")


def test_resume_with_other_options(copied: Path, command):
    refused(command("train", "--resume", "--latent-dim", 5, "--out", copied), "started with latent-dim")


def test_resume_for_fewer_epochs(copied: Path, command):
    before = (copied / "run.json").read_bytes()
    fewer = f"the run in {copied} has 2 epochs already, --epochs 1 asks for fewer: leave it out, or ask for more."
    refused(command("train", "--resume", "--epochs", 1, "--out", copied), fewer)
    refused(command("train", "--resume", "--epochs", -1, "--out", copied), "--epochs is -1")
    (copied / "checkpoint" / "weights.safetensors").write_bytes(b"")
    refused(command("train", "--resume", "--epochs", 3, "--out", copied), "damaged")
    assert (copied / "run.json").read_bytes() == before


def test_resume_and_overwrite(copied: Path, command):
    result = command("train", "--resume", "--overwrite", "--out", copied)
    refused(result, "--resume and --overwrite exclude each other")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99, "options": {}}'])
def test_damaged_run_json(text: str, copied: Path, command):
    (copied / "run.json").write_text(text)
    refused(command("evaluate", copied), "run.json is damaged")


def test_options_of_another_version(copied: Path, command):
    facts = json.loads((copied / "run.json").read_text())
    facts["options"]["colour"] = facts["options"].pop("lr")
    (copied / "run.json").write_text(json.dumps(facts))
    refused(command("evaluate", copied), "damaged", "colour")


def test_damaged_and_missing_checkpoint(copied: Path, command):
    weights = copied / "checkpoint" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(command("evaluate", copied), "damaged")
    for file in (copied / "checkpoint").iterdir():
        file.unlink()
    refused(command("report", copied), "no checkpoint")


def test_changed_data(tmp_path: Path, command):
    rows = np.random.default_rng(0).random((30, 4, 4)).astype("float32")
    np.save(tmp_path / "own.npy", rows)
    out = tmp_path / "run"
    assert command("train", tmp_path / "own.npy", "--hidden", 4, "--epochs", 1, "--out", out).exit_code == 0
    np.save(tmp_path / "own.npy", rows[::-1])
    refused(command("evaluate", out), "data have changed")


def test_numbers_of_evaluate(trained: Path, command):
    refused(command("evaluate", trained, "--particles", 0), "--particles is 0")
    refused(command("evaluate", trained, "--split", "tset"), "choose --split from")


def test_labels(trained: Path, conditional: Path, tmp_path: Path, command):
    refused(command("sample", trained, "--label", 3), "conditional_vae")
    refused(command("sample", conditional, "--label", 10), "no class '10'")
    assert command("sample", conditional, "--label", "ten").stderr.endswith("The classes are 0 to 9.\n")
    refused(command("sample", conditional, "--out", tmp_path / "x.jpg"), ".png")


def test_version(command):
    assert command("--version").stdout.startswith("pyro-vaes 0")


def test_module_exits_with_code_2():
    words = [sys.executable, "-m", "pyro_vaes.cli", "evaluate", "nowhere"]
    failed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and failed.stderr.startswith("Error: ") and "Traceback" not in failed.stderr
