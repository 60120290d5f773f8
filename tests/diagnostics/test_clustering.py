"""Clustering scores: the spec's item T17, and small cases by hand."""

import itertools

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pyro_vaes.diagnostics import clustering_report, clustering_scores
from pyro_vaes.diagnostics.representation.clustering import contingency_table, hungarian_map, majority_map


def test_T17_metrics():
    for seed in range(20):
        torch.manual_seed(seed)
        labels, clusters = torch.randint(5, (60,)), torch.randint(3 + seed % 5, (60,))
        scores = clustering_scores(clusters, labels)
        assert scores.majority_accuracy >= scores.hungarian_accuracy
        again = clustering_scores(torch.randperm(9)[clusters], torch.randperm(5)[labels])
        for name in ("hungarian_accuracy", "majority_accuracy", "nmi", "ari", "effective_clusters", "used_clusters"):
            assert getattr(again, name) == pytest.approx(getattr(scores, name), abs=1e-12)
    labels = torch.arange(40) % 4
    perfect = clustering_scores(3 - labels, labels)
    assert (perfect.hungarian_accuracy, perfect.majority_accuracy, perfect.ari) == (1.0, 1.0, 1.0)
    assert perfect.nmi == pytest.approx(1.0) and perfect.effective_clusters == pytest.approx(4.0)
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    constant = clustering_scores(torch.full((10,), 6), labels)
    assert constant.hungarian_accuracy == constant.majority_accuracy == 0.7
    assert (constant.nmi, constant.ari, constant.used_clusters, constant.num_clusters) == (0.0, 0.0, 1, 7)
    assert constant.effective_clusters == 1.0


def test_matching_against_all_permutations():
    for seed in range(10):
        torch.manual_seed(seed)
        labels, clusters = torch.randint(4, (30,)), torch.randint(4, (30,))
        labels[:4] = clusters[:4] = torch.arange(4)
        best = max(
            (torch.tensor(p)[clusters] == labels).double().mean().item() for p in itertools.permutations(range(4))
        )
        scores = clustering_scores(clusters, labels)
        assert scores.hungarian_accuracy == pytest.approx(best, abs=1e-12)
        assert scores.nmi == pytest.approx(normalized_mutual_info_score(labels, clusters))
        assert scores.ari == pytest.approx(adjusted_rand_score(labels, clusters))
    each = clustering_scores(torch.arange(30), labels)  # a cluster for each datum
    assert each.majority_accuracy == 1.0 and each.hungarian_accuracy == 4 / 30


def test_maps_are_learnt_on_other_data():
    clusters, labels = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([2, 2, 1, 1, 1, 0])
    assert contingency_table(clusters, labels).tolist() == [[0, 1, 2], [0, 2, 0], [0, 0, 0], [1, 0, 0]]
    assert majority_map(clusters, labels).tolist() == [2, 1, 1, 0]  # of the empty one, the most frequent label
    assert hungarian_map(clusters, labels).tolist() == [2, 1, -1, 0]
    test_clusters, test_labels = torch.tensor([0, 1, 2, 4]), torch.tensor([2, 0, 1, 1])
    scores = clustering_scores(test_clusters, test_labels, fitted=(clusters, labels), num_clusters=8)
    assert scores.majority_accuracy == 0.5  # 0 -> 2 and 2 -> 1 are right; cluster 4 has no label
    assert scores.hungarian_accuracy == 0.25
    assert (scores.used_clusters, scores.num_clusters, scores.num_labels) == (4, 8, 3)


def test_report_of_levels():
    labels = torch.arange(30) % 3
    levels = {"y_1": labels.roll(1), "y_2": torch.zeros(30, dtype=torch.long)}
    report = clustering_report(levels, labels, num_clusters={"y_1": 3, "y_2": 5})
    assert report["y_1"] == clustering_scores(levels["y_1"], labels)
    assert "1 of 5" in str(report) and "33.3%" in str(report)
    held_out = clustering_report(levels, labels, fitted=({n: c.roll(1) for n, c in levels.items()}, labels))
    assert held_out["y_1"].majority_accuracy == 0.0 and report["y_1"].majority_accuracy == 1.0


def test_refusals():
    y = torch.tensor([0, 1])
    for clusters, labels, said in (
        (torch.tensor([0.2, 0.8]), y, "argmax"),
        (y, torch.tensor([-1, 0]), "labels must be whole numbers"),
        (torch.eye(2).long(), y, r"shape \(2, 2\)"),
        (y, torch.tensor([0, 1, 1]), "2 clusters but 3 labels"),
        (y[:0], y[:0], "clusters must be"),
    ):
        with pytest.raises(ValueError, match=said):
            clustering_scores(clusters, labels)
    with pytest.raises(ValueError, match="num_clusters=1, but"):
        clustering_scores(y, y, num_clusters=1)
    with pytest.raises(ValueError, match="nothing to score"):
        clustering_report({}, y)
