"""One run of each kind on few digits, trained once, which the tests of commands read or copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pyro_vaes.cli import app

SMALL = ["--hidden", "16,8", "--limit", "200", "--batch-size", "100"]

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def command() -> Command:
    """Run the command line in this process."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A run of the plain model; not to be changed."""
    out = tmp_path_factory.mktemp("plain") / "run"
    result = command("train", "digits", *SMALL, "--latent-dim", 3, "--epochs", 2, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A run of the conditional model; not to be changed."""
    out = tmp_path_factory.mktemp("conditional") / "run"
    words = ["--model", "conditional_vae", "--binarize", "--latent-dim", 2, "--epochs", 1]
    result = command("train", "digits", *SMALL, *words, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the plain run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
