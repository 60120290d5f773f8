"""`python -m papers`: names, tables, results that go on where they stopped, and answers to mistakes."""

import json

import pytest
from typer.testing import CliRunner

from papers import STUDIES
from papers.__main__ import app


@pytest.fixture
def command():
    """Run `python -m papers` in this process."""

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def test_a_study_is_run_tabulated_and_recorded_once(tmp_path, command):
    out = tmp_path / "new" / "smoke.json"
    words = ["recursive_mixture", "--only", "VAE; ME-2", "--out", out, "--no-progress"]
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert "IW − ELBO" in result.stdout and "ME-2" in result.stdout and str(out) in result.stdout

    about = json.loads(out.read_text())["about"]
    assert about["command"].startswith("python -m papers recursive_mixture --budget smoke --seeds 1,2,3")
    assert "torch" in about["versions"]
    assert command(*words).stdout == result.stdout, "what is there is not measured again"


def test_results_lie_under_runs(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("lossy_coins", "--data", "coins", "--only", "window 0", "--no-progress")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "papers" / "lossy_coins-coins-smoke.json").exists()


@pytest.mark.parametrize("words", [(), ("list",)])
def test_names_are_listed(words, command):
    result = command(*words)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == list(STUDIES)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("recursive_mixtures",), "did you mean 'recursive_mixture'"),
        (("lossy_coins", "--budget", "tpu"), "The budgets are smoke, cpu, gpu"),
        (("lossy_coins", "--seeds", "one"), "--seeds takes positive whole numbers"),
        (("variational_laplace", "--only", "VAE; foo"), "; 'VLAE-1, 0.9^t, trained start', but got 'foo'."),
    ],
)
def test_mistakes_are_answered_in_a_paragraph(words, answer, tmp_path, command):
    result = command(*words, "--out", tmp_path / "out.json")
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("Error: ") and answer in result.stderr
