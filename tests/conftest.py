"""What every test gets: one seed, a clean Pyro, one thread, no display, and the image data if given."""

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pyro
import pytest
import torch

torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Say which versions are tested: those of `make test` are the newest, those of `make test-oldest` the oldest."""
    names = ("torch", "pyro-ppl", "numpy", "scipy", "arviz")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


@pytest.fixture(scope="session", autouse=True)
def no_display() -> None:
    """Draw into memory: the tests run where there is no screen."""
    matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Seed 0, validation on and an empty parameter store for each test; restore global settings after it."""
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    plt.close("all")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real image data that PYRO_VAES_DATA names; the test is skipped where there is none."""
    named = os.environ.get("PYRO_VAES_DATA")
    if not named:
        pytest.skip("PYRO_VAES_DATA is not set: this test needs the folder of image data that it names")
    root = Path(named)
    if not root.is_dir():
        pytest.skip(f"PYRO_VAES_DATA={named!r} is not a folder")
    return root
