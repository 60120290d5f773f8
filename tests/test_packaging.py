"""The package as a stranger meets it: what importing does, what is shipped, and whether the README runs."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vaes

ROOT = Path(__file__).parent.parent

# Prints every global setting that an import could have changed, before and after the import.
IMPORT_PROBE = """
import hashlib, json, logging, random, warnings
import matplotlib, numpy, pyro, torch
import arviz, sklearn.datasets, torchvision  # which draw random numbers and add warning filters themselves

def settings():
    rng = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    return {
        "Pyro's validation": [room.util.is_validation_enabled() for room in (pyro.infer, pyro.poutine)],
        "validation of distributions": torch.distributions.Distribution._validate_args,
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "random states": hashlib.sha256(repr(rng).encode()).hexdigest(),
        "warning filters": repr(warnings.filters),
        "numpy's error state": numpy.geterr(),
        "matplotlib's settings": repr(sorted(matplotlib.rcParams.items(), key=str)),
        "log handlers": [len(logging.root.handlers), logging.root.level],
        "parameter store": list(pyro.get_param_store().keys()),
    }

before = settings()
import importlib, pkgutil
import pyro_vaes
for module in pkgutil.walk_packages(pyro_vaes.__path__, "pyro_vaes."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps([before, settings()]))
"""


def run_python(code: str) -> str:
    """Run code in a fresh interpreter that sees this source tree; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def readme_blocks() -> list[str]:
    """The README's python blocks, in order; none where there is no README."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_importing_changes_no_global_setting() -> None:
    before, after = json.loads(run_python(IMPORT_PROBE).splitlines()[-1])
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed


def test_importing_prints_nothing() -> None:
    assert run_python("import pyro_vaes") == ""


def test_version_is_the_changelogs_newest() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == pyro_vaes.__version__


def test_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("pyro-vaes")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package runs from its source tree and is not installed")
    assert installed == pyro_vaes.__version__


def shipped_folders(kind: str) -> set[str]:
    """The folders that hatchling would put into a wheel or a source distribution; skipped where it is not installed."""
    hatchling = pytest.importorskip(f"hatchling.builders.{kind}")
    builder = getattr(hatchling, f"{kind.title()}Builder")(str(ROOT))
    paths = [Path(file.distribution_path) for file in builder.recurse_included_files()]
    return {path.parts[0] for path in paths if len(path.parts) > 1}


def test_the_wheel_is_the_package_alone() -> None:
    assert shipped_folders("wheel") == {"pyro_vaes"}


def test_the_source_distribution_has_papers_tests_notebooks_and_tools() -> None:
    folders = {"pyro_vaes", "papers", "tests", "benchmarks", "notebooks", "docs", "tools"}
    assert shipped_folders("sdist") == folders


def test_the_package_imports_none_of_the_papers() -> None:
    code = (
        "import importlib, pkgutil, sys, pyro_vaes\n"
        "for module in pkgutil.walk_packages(pyro_vaes.__path__, 'pyro_vaes.'):\n"
        "    importlib.import_module(module.name)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'papers'])"
    )
    assert run_python(code).strip() == "[]"


def test_types_are_advertised() -> None:
    assert (Path(pyro_vaes.__file__).parent / "py.typed").exists()


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = readme_blocks()
    if not blocks:
        pytest.skip("no README with python blocks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_VAES_BUDGET", "smoke")
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, python block {number}", "exec"), namespace)
