"""What takes long to import comes with its first use."""

import subprocess
import sys

import pytest

SLOW = ("torchvision", "sklearn", "matplotlib", "arviz", "pandas", "torch._dynamo", "torch._inductor")


def loaded(statement):
    """Which of the slow packages a statement imports, beside those of torch and Pyro."""
    code = f"import sys, torch, pyro; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return sorted(set(found.stdout.split()) & set(SLOW))


@pytest.mark.parametrize("statement", ["import pyro_vaes", "import pyro_vaes.guides, pyro_vaes.theory"])
def test_the_package_imports_nothing_slow(statement):
    assert loaded(statement) == []


def test_the_command_line_imports_nothing_slow_for_its_help():
    statement = (
        "from pyro_vaes.cli import app; from typer.testing import CliRunner; "
        "code = CliRunner().invoke(app, ['--help']).exit_code; assert code == 0"
    )
    assert loaded(statement) == []
