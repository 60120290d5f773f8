"""Studies: cases are run once, tabulated beside published figures, drawn, and go on where they stopped."""

import json
import math
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import pytest

from papers import Findings, Job, Result, Row, Study


@dataclass(frozen=True)
class Setting:
    data: str
    epochs: int
    widths: tuple[int, ...] = (8, 4)


def study(calls, cases=None):
    def good(setting, job):
        calls.append(job.seed)
        return Result({"KL": float(job.seed), "NLL": math.inf}, {"KL bars": plt.figure()})

    def diverged(setting, job):
        raise FloatingPointError("not finite\nand more")

    return Study(
        "tiny",
        "nothing",
        ("mnist", "digits"),
        lambda budget, data: Setting(data, {"smoke": 1, "cpu": 2, "gpu": 3}[budget]),
        cases or (lambda _: {"good": good, "diverged": diverged}),
        published={"mnist": {"good": {"KL": 3.5}, "elsewhere": {"NLL": 80.0}}},
        remark=lambda s: f"As printed, on {s.data}.",
        summary=lambda f: [f"{len(f.rows)} rows"],
    )


def test_rows_are_tabulated_beside_published_figures_and_not_run_again(tmp_path, caplog):
    calls, out = [], tmp_path / "results.json"
    found = study(calls).run("cpu", seeds=(1, 2), out=out, progress=False)
    assert calls == [1, 2] and "diverged with seed 1 stopped: not finite" in caplog.text
    assert [(r.case, r.seed, r.error) for r in found.rows[:2]] == [("good", 1, ""), ("diverged", 1, "not finite")]
    lines = str(found).splitlines()
    assert lines[0] == "tiny: data mnist, epochs 2, widths 8-4; mean ± sd over seeds"
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "case",
        "good",
        "good, published",
        "diverged (2 failed)",
        "elsewhere, published",
    ]
    assert "1.50 ± 0.71" in lines[2] and "3.5" in lines[3] and lines[6:] == ["4 rows", "As printed, on mnist."]
    assert "| good | 1.50 ± 0.71 |" in found.markdown()
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["good-1-kl-bars.png", "good-2-kl-bars.png"]
    assert not plt.get_fignums(), "pictures are closed"

    again = study(calls).run("cpu", seeds=(1, 2, 3), only=["good"], out=out, progress=False)
    assert calls == [1, 2, 3] and again.column("KL") == {"good": [1.0, 2.0, 3.0]}
    read = Findings.read(out)
    assert [(r.case, r.seed) for r in read.rows] == [("good", 1), ("good", 2), ("good", 3)]
    assert math.isnan(read.rows[0].figures["NLL"]), "JSON has no infinity"
    assert json.loads(out.read_text())["about"] == {"experiment": "tiny", "budget": "cpu"}
    with pytest.raises(ValueError, match="another study or setting"):
        study(calls).run("gpu", out=out)


def test_a_mistake_is_not_a_finding(tmp_path):
    def broken(setting, job):
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        study([], lambda _: {"broken": broken}).run("smoke")


def test_smoke_takes_digits_and_one_seed():
    calls = []
    found = study(calls).run("smoke", seeds=(7, 8), only=["good"])
    assert calls == [7] and found.setting["data"] == "digits" and found.published == {}


def test_bad_input():
    with pytest.raises(ValueError, match="The budgets are smoke, cpu, gpu"):
        study([]).run("tpu")
    with pytest.raises(ValueError, match="tiny runs on mnist, digits, but got 'mnits'"):
        study([]).run("cpu", data="mnits")
    with pytest.raises(ValueError, match="compares 'good'; 'diverged', but got 'god'; 'dog'"):
        study([]).run("cpu", only=["god", "dog"])


def test_figures_that_not_all_cases_have():
    found = Findings("tiny", {}, [Row("a", 1, {"KL": 1.0}), Row("b", 1, {"MI": 2.0})])
    assert found.table() == [["case", "KL", "MI"], ["a", "1.00", "-"], ["b", "-", "2.00"]]
    assert found.column("MI") == {"b": [2.0]}


def test_a_job_is_on_the_cpu_unless_told():
    assert Job().device.type == "cpu" and replace(Job(), seed=3).seed == 3
