"""The clustering experiment runs from end to end, scores honestly, and states what is published."""

import math

import pytest
import torch

from papers import LADDER_CLUSTERING, Job
from papers.ladder_clustering.experiment import scores
from papers.ladder_clustering.training import component_images, train_vlac


def test_the_smoke_budget_gives_finite_figures_and_pictures(tmp_path):
    found = LADDER_CLUSTERING.run("smoke", out=tmp_path / "found.json", progress=False)
    assert [r.case for r in found.rows] == ["VLAC", "GM-DGM", "K-means on pixels"]
    for row in found.rows:
        assert not row.error and all(map(math.isfinite, row.figures.values()))
        assert row.figures["top K"] == 6 and 10 <= row.figures["top majority %"] <= 100
        assert row.figures["top Hungarian %"] <= row.figures["top majority %"] + 1e-9
    assert {"below NMI", "below used", "start majority %", "NELBO"} < found.rows[0].figures.keys()
    pictures = sorted(p.name for p in (tmp_path / "found").iterdir())
    assert pictures == [f"vlac-1-{what}-{rung}.png" for what in ("clusters", "components") for rung in ("below", "top")]


def test_published_figures_are_those_of_the_specification():
    majority = {
        (data, case): figures["top majority %"]
        for data, cases in LADDER_CLUSTERING.published.items()
        for case, figures in cases.items()
        if "top majority %" in figures
    }
    assert majority == {
        ("mnist", "GM-DGM"): 96.3,
        ("mnist", "MFCVAE"): 92.02,
        ("mnist", "GMVAE"): 96.9,
        ("fashion_mnist", "GM-DGM"): 75.2,
    }
    assert LADDER_CLUSTERING.published["mnist"]["VaDE"]["top Hungarian %"] == 94.46
    said = LADDER_CLUSTERING.remark(LADDER_CLUSTERING.setting("cpu", "svhn_subset"))
    assert "subset of 1,083 digits" in said and "equal K only" in said


@pytest.mark.parametrize("data", LADDER_CLUSTERING.data)
def test_every_setting_has_as_many_clusters_per_rung_as_the_papers(data):
    for budget in ("cpu", "gpu"):
        assert LADDER_CLUSTERING.setting(budget, data).clusters == (25, 25)


def test_maps_from_clusters_to_labels_come_from_the_training_data():
    """The test data alone would name the two clusters the other way round."""
    train, test = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1])
    figures = scores("top", (train, torch.tensor([5, 5, 3, 3])), (test, torch.tensor([3, 5])), 2)
    assert figures["top majority %"] == figures["top Hungarian %"] == 0.0 and figures["top NMI"] == pytest.approx(1.0)


def test_components_are_generated_with_the_other_rungs_alike_in_each_column():
    setting = LADDER_CLUSTERING.setting("smoke", "digits")
    data = setting.load(Job(), setting.train_images)
    vlac, _ = train_vlac(setting, data, Job(seed=2))
    images, component = component_images(vlac, 1, columns=4, seed=3)
    assert images.shape == (24, 64) and torch.equal(component, torch.arange(6).repeat_interleave(4))
    with torch.no_grad():
        for prior in vlac.mixtures[:1]:  # one narrow component everywhere: then all rows are alike
            prior.place(prior.loc[:1].expand_as(prior.loc), 1e-6)
    images, _ = component_images(vlac, 1, columns=4, seed=3)
    rows = images.unflatten(0, (6, 4))
    assert (rows - rows[:1]).abs().max() < 0.05 and (rows[0] - rows[0, :1]).abs().max() > 0.0
