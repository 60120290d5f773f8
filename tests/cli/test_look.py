"""`evaluate`, `sample`, `report`, `list`, `demo`: what they print and write, and that no weight changes."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import arviz as az
import matplotlib.pyplot as plt
import pytest
import xarray

from pyro_vaes import plots
from pyro_vaes.cli import open_run
from pyro_vaes.cli.demo import DEMO, demo
from pyro_vaes.cli.measure import measure
from pyro_vaes.cli.report import write_report
from pyro_vaes.cli.run_files import files_of_run
from pyro_vaes.data import NAMES


def test_evaluate_measures_and_changes_no_weight(copied: Path, command):
    weights = (copied / "checkpoint" / "weights.safetensors").read_bytes()
    result = command("evaluate", copied, "--particles", 30, "--num-data", 40)
    assert result.exit_code == 0, result.output
    assert (copied / "checkpoint" / "weights.safetensors").read_bytes() == weights
    numbers = json.loads((copied / "evaluation.json").read_text())
    assert numbers["num_data"] == 40 and numbers["split"] == "test"
    assert numbers["log_likelihood"] >= numbers["elbo"]  # Jensen, on the same draws
    assert 1 <= numbers["ess_median"] <= 30
    assert numbers["sites"]["z"]["units"] == 3 and len(numbers["sites"]["z"]["kl"]) == 3
    assert f"{numbers['elbo']:.2f}" in result.stdout and "k-hat" in result.stdout
    again = command("evaluate", copied, "--particles", 30, "--num-data", 40)
    assert again.stdout == result.stdout


def test_parts_sorted_by_class_are_measured_on_all_classes(copied: Path):
    run = open_run(copied)
    part = run.data.test
    order = part.labels.argsort()
    in_order = replace(part, images=part.images[order], labels=part.labels[order])
    run = replace(run, data=replace(run.data, test=in_order))
    first, again = (measure(run, num_particles=2, num_data=40).part for _ in range(2))
    assert len(first) == 40 and len(first.labels.unique()) >= 8
    assert first.labels.equal(again.labels)


def test_evaluate_with_few_particles_has_no_khat(copied: Path, command):
    result = command("evaluate", copied, "--particles", 5, "--num-data", 10, "--split", "valid")
    assert result.exit_code == 0, result.output
    assert json.loads((copied / "evaluation.json").read_text())["khat_median"] is None


def test_sample(copied: Path, conditional: Path, tmp_path: Path, command):
    assert command("sample", copied, "--num", 9, "--noise").exit_code == 0
    out = tmp_path / "new" / "threes.png"
    result = command("sample", conditional, "--label", 3, "--label", "5", "--num", 8, "--out", out)
    assert result.exit_code == 0, result.output
    assert out.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "rows", "columns", "title"),
    [
        (["--num", 5], 1, 10, "column by column: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ([], 7, 10, "column by column: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (["--num", 101], 10, 11, "row by row: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (["--num", 3, "--label", 7, "--label", 2], 2, 2, "row by row: 7, 2"),
        (["--num", 3, "--label", 4], 1, 3, "row by row: 4"),
    ],
)
def test_sample_draws_whole_rows(
    words, rows: int, columns: int, title: str, conditional: Path, tmp_path: Path, command
):
    with mock.patch("pyro_vaes.plots.samples", wraps=plots.samples) as drawn:
        result = command("sample", conditional, *words, "--out", tmp_path / "classes.png")
    assert result.exit_code == 0, result.output
    (images,), given = drawn.call_args
    assert len(images) == rows * columns and given["columns"] == columns
    assert given["title"] == f"Samples given the class, {title}"
    _, width, _ = plt.imread(tmp_path / "classes.png").shape
    assert width > 500, "not a sliver"


def test_sample_by_class_depends_on_the_class(conditional: Path):
    import torch

    from pyro_vaes.cli.pictures import sample_images

    run = open_run(conditional)
    one, other = (sample_images(run, 4, labels=torch.full((4,), k)) for k in (0, 1))
    assert one.shape == (4, 1, 8, 8)
    assert not torch.allclose(one, other)


class Page(HTMLParser):
    """Collects open tags, attributes that load something, and whether every tag is closed."""

    VOID = {"meta", "link", "img", "br", "!doctype"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += tag == "img"
        self.loaded += [v or "" for n, v in attrs if n in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def reported(trained: Path, tmp_path_factory: pytest.TempPathFactory, command) -> Path:
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("reported") / "run"))
    result = command("report", run, "--num-data", 60, "--particles", 30)
    assert result.exit_code == 0, result.output
    return run


def test_report_is_one_page_without_anything_outside(reported: Path):
    text = (reported / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and text.startswith("<!DOCTYPE html>")
    assert page.images >= 10
    assert all(source.startswith("data:") for source in page.loaded)
    assert not re.search(r"url\(|@import|<script", text)
    for wanted in ("pyro-vaes train digits", "z[0]", "prior mean", "posterior mean", "UCI", "SHA-256"):
        assert wanted in text


def test_report_escapes_what_others_have_named(copied: Path):
    run = open_run(copied)
    facts = run.facts | {"data": run.facts["data"] | {"name": "<b>mine</b> & yours"}}
    run = replace(run, facts=facts)
    write_report(run, measure(run, num_particles=2, num_data=20))
    text = (copied / "report.html").read_text()
    assert "<b>mine" not in text and text.count("&lt;b&gt;mine&lt;/b&gt; &amp; yours") == 3


@pytest.mark.arviz
def test_netcdf_reads_back(reported: Path):
    with xarray.open_datatree(reported / "posterior.nc", engine="h5netcdf") as tree:
        assert {"posterior", "prior", "posterior_predictive", "observed_data", "log_likelihood"} <= set(tree.children)
        assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 200, "data": 60, "z_dim_0": 3}
        assert az.summary(az.convert_to_dataset(tree["posterior"].to_dataset()), kind="stats").shape[0] == 180


@pytest.mark.arviz
@pytest.mark.skipif("PYRO_VAES_OTHER_PYTHON" not in os.environ, reason="PYRO_VAES_OTHER_PYTHON names no interpreter")
def test_netcdf_reads_back_on_another_interpreter(reported: Path):
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import arviz, xarray; "
        "t = xarray.open_datatree(sys.argv[1], engine='h5netcdf'); print(t['posterior']['z'].shape)"
    )
    words = [os.environ["PYRO_VAES_OTHER_PYTHON"], "-c", code, str(reported / "posterior.nc")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "(1, 200, 60, 3)"


@pytest.mark.parametrize("model", ["conditional_vae", "hierarchical_vae"])
def test_report_of_other_models(model: str, tmp_path: Path, command):
    words = ["--model", model, "--hidden", "8,8", "--limit", 60, "--latent-dim", "3,2" if model[0] == "h" else "2"]
    assert command("train", "digits", *words, "--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    result = command("report", tmp_path / "run", "--num-data", 30, "--particles", 30)
    assert result.exit_code == 0, result.output
    assert ("manifold.png" in result.stdout) == (model == "conditional_vae")
    assert ("posterior_z_2.png" in result.stdout) == (model == "hierarchical_vae")
    assert set(files_of_run(tmp_path / "run")) == set((tmp_path / "run").iterdir()), "and --overwrite knows all of it"


def test_report_with_a_joint_guide_and_no_labels(tmp_path: Path, command):
    import numpy as np

    np.save(tmp_path / "own.npy", np.random.default_rng(0).random((60, 4, 4)).astype("float32"))
    words = ["--guide", "amortized_multivariate_normal", "--hidden", 8, "--epochs", 1, "--latent-dim", 2]
    assert command("train", tmp_path / "own.npy", *words, "--out", tmp_path / "run").exit_code == 0
    result = command("report", tmp_path / "run", "--num-data", 20, "--particles", 30)
    assert result.exit_code == 0, result.output


def test_list_names_everything(tmp_path: Path, command):
    result = command("list", "--root", tmp_path)
    assert result.exit_code == 0, result.output
    for name in (*NAMES, "hierarchical_vae", "conv", "poisson", "amortized_normal", "free_bits"):
        assert re.search(rf"^  {name} ", result.stdout, re.M), name
    assert re.search(r"^  digits +here", result.stdout, re.M)
    assert re.search(r"^  mnist +not here; downloads", result.stdout, re.M)
    assert re.search(r"^  frey_faces +not here ", result.stdout, re.M)
    assert not list(tmp_path.iterdir())  # looking downloads nothing


def test_list_sees_what_is_present(data_root: Path, command):
    result = command("list", "--root", data_root)
    for name in ("mnist", "fashion_mnist", "omniglot", "binarized_mnist", "frey_faces", "att_faces"):
        assert re.search(rf"^  {name} +here", result.stdout, re.M), name


def test_demo(tmp_path: Path):
    options = replace(DEMO, hidden=(16,), latent_dim=(3,), epochs=1, limit=128)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "run.json").write_text("{}")  # of an earlier demo, which is replaced
    measured, written = demo(tmp_path / "demo", options=options, progress=False)
    assert all(path.exists() for path in written)
    names = {path.name for path in written}
    assert {"report.html", "posterior.nc", "samples.png", "manifold.png", "ppc.png", "latents.png", "kl.png"} <= names
    assert len(measured.lines()) == 3


def test_reproduce_says_what_to_type(command):
    result = command("reproduce", "lossy_coins", "--budget", "cpu", "--only", "window 0; window 1")
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.endswith("    python -m papers lossy_coins --budget cpu --only 'window 0; window 1'\n")
    assert "python -m papers NAME --budget smoke" in command("reproduce").stderr
