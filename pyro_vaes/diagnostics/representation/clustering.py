"""How well clusters agree with labels that training has not seen.

    Hungarian accuracy   clusters are matched to labels one to one, as well as can be; meant for K = number of labels
    majority accuracy    each cluster takes its most frequent label; grows with K, up to 1 at one cluster per datum
    NMI                  I(cluster; label) / mean of their entropies
    ARI                  agreement on pairs of data, 0 in expectation for random clusters
    used clusters        clusters that hold data; effective clusters: exp of the entropy of their shares

Accuracies at different numbers of clusters K do not compare, so each score carries K and how many of them are used.

References:
    | Unsupervised Deep Embedding for Clustering Analysis (Xie, Girshick & Farhadi, 2016), for the matching
    | https://arxiv.org/abs/1511.06335
    | Comparing Partitions (Hubert & Arabie, 1985), for the adjusted Rand index
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import pad

from pyro_vaes.tables import text_table


def contingency_table(clusters: Tensor, labels: Tensor) -> Tensor:
    """How often cluster k meets label c.

    Arguments:
        clusters: Numbers 0, 1, .. of the clusters, ``(N,)``.
        labels: Numbers 0, 1, .. of the labels, ``(N,)``.

    Returns:
        Counts with shape ``(K, C)``, one more than the largest numbers.

    Raises:
        ValueError: The two differ in shape, are empty, or are not whole numbers from 0 on.

    Example:
        >>> contingency_table(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]))
        tensor([[0, 2],
                [1, 0]])
    """
    for name, numbers in (("clusters", clusters), ("labels", labels)):
        if numbers.dim() != 1 or len(numbers) == 0 or numbers.is_floating_point() or bool((numbers < 0).any()):
            raise ValueError(
                f"{name} must be whole numbers from 0 on in a tensor with shape (N,), but got {numbers.dtype} with "
                f"shape {tuple(numbers.shape)}. Take argmax(-1) of probabilities first?"
            )
    if len(clusters) != len(labels):
        raise ValueError(f"There are {len(clusters)} clusters but {len(labels)} labels; one of each per datum?")
    clusters, labels = clusters.long().cpu(), labels.long().cpu()
    k, c = int(clusters.max()) + 1, int(labels.max()) + 1
    return torch.bincount(clusters * c + labels, minlength=k * c).reshape(k, c)


def hungarian_map(clusters: Tensor, labels: Tensor) -> Tensor:
    """The label of each cluster under the one-to-one matching with the most agreements.

    Arguments are those of :func:`contingency_table`.

    Returns:
        Labels ``(K,)``; -1 for clusters without a match, of which there are some where K exceeds the labels.

    Example:
        >>> hungarian_map(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 1, 1]))
        tensor([ 1,  0, -1])
    """
    table = contingency_table(clusters, labels)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    matched = torch.full((len(table),), -1)
    matched[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return matched


def majority_map(clusters: Tensor, labels: Tensor) -> Tensor:
    """The most frequent label of each cluster; of an empty cluster, the most frequent label of all.

    Arguments are those of :func:`contingency_table`.

    Returns:
        Labels ``(K,)``.

    Example:
        >>> majority_map(torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 1, 0, 1, 1]))
        tensor([1, 1, 1])
    """
    table = contingency_table(clusters, labels)
    return torch.where(table.sum(1) > 0, table.argmax(1), table.sum(0).argmax())


def _accuracy(label_of: Tensor, clusters: Tensor, labels: Tensor) -> float:
    """Share of the data whose cluster's label is theirs; a cluster that the map does not know has none."""
    missing = max(0, int(clusters.max()) + 1 - len(label_of))
    known = pad(label_of, (0, missing), value=-1)
    return (known[clusters.cpu()] == labels.cpu()).double().mean().item()


@dataclass(frozen=True)
class ClusteringScores:
    """Agreement of one clustering with labels, see :mod:`pyro_vaes.diagnostics.representation.clustering`.

    Attributes:
        hungarian_accuracy: Share in [0, 1] of agreements under the one-to-one matching.
        majority_accuracy: Share in [0, 1] of agreements with each cluster's majority.
        nmi: Normalised mutual information in [0, 1], arithmetic mean of the entropies.
        ari: Adjusted Rand index, at most 1.
        used_clusters: Number of clusters with data.
        effective_clusters: exp of the entropy of the clusters' shares, in [1, K].
        num_clusters: K.
        num_labels: Number of different labels.
    """

    hungarian_accuracy: float
    majority_accuracy: float
    nmi: float
    ari: float
    used_clusters: int
    effective_clusters: float
    num_clusters: int
    num_labels: int


def clustering_scores(
    clusters: Tensor,
    labels: Tensor,
    *,
    fitted: tuple[Tensor, Tensor] | None = None,
    num_clusters: int | None = None,
) -> ClusteringScores:
    """Score one clustering against labels.

    Arguments:
        clusters: Numbers 0, 1, .. of the clusters, ``(N,)``.
        labels: Numbers 0, 1, .. of the labels, ``(N,)``.
        fitted: Clusters and labels of other data, the training data, on which both maps from clusters to labels are
            learnt; by default they are learnt on the data that are scored, which flatters them.
        num_clusters: K; by default one more than the largest number seen.

    Raises:
        ValueError: See :func:`contingency_table`.

    Example:
        >>> scores = clustering_scores(torch.tensor([2, 2, 0, 1]), torch.tensor([0, 0, 1, 1]))
        >>> scores.hungarian_accuracy, scores.majority_accuracy, scores.used_clusters
        (0.75, 1.0, 3)
    """
    table = contingency_table(clusters, labels)
    source = (clusters, labels) if fitted is None else fitted
    largest = max(int(clusters.max()), int(source[0].max())) + 1
    if num_clusters is None:
        num_clusters = largest
    if num_clusters < largest:
        raise ValueError(f"num_clusters={num_clusters}, but clusters are numbered up to {largest - 1}.")

    share = table.sum(1) / table.sum()
    numbers, truth = clusters.cpu().numpy(), labels.cpu().numpy()
    return ClusteringScores(
        hungarian_accuracy=_accuracy(hungarian_map(*source), clusters, labels),
        majority_accuracy=_accuracy(majority_map(*source), clusters, labels),
        nmi=float(normalized_mutual_info_score(truth, numbers)),
        ari=float(adjusted_rand_score(truth, numbers)),
        used_clusters=int((share > 0).sum()),
        effective_clusters=torch.special.entr(share.double()).sum().exp().item(),
        num_clusters=num_clusters,
        num_labels=len(labels.unique()),
    )


@dataclass(frozen=True)
class ClusteringReport:
    """Scores of several clusterings of the same data, such as the levels of a hierarchy; prints itself as a table."""

    levels: dict[str, ClusteringScores]

    def __getitem__(self, name: str) -> ClusteringScores:
        return self.levels[name]

    def __repr__(self) -> str:
        width = max(7, *(len(name) + 2 for name in self.levels))
        columns = (
            f"level:<{width} | Hungarian:>10.1% | majority:>10.1% | NMI:>7.3f | ARI:>7.3f | used:>11 | effective:>11.1f"
        )
        rows = []
        for name, s in self.levels.items():
            used = f"{s.used_clusters} of {s.num_clusters}"
            agreement = (s.hungarian_accuracy, s.majority_accuracy, s.nmi, s.ari)
            rows.append((name, *agreement, used, s.effective_clusters))
        return "\n".join(text_table(columns, rows))


def clustering_report(
    clusters: Mapping[str, Tensor],
    labels: Tensor,
    *,
    fitted: tuple[Mapping[str, Tensor], Tensor] | None = None,
    num_clusters: Mapping[str, int] | None = None,
) -> ClusteringReport:
    """Score the clusterings of each level against the same labels.

    Arguments:
        clusters: For each level the clusters of the data, ``(N,)``.
        labels: Their labels, ``(N,)``.
        fitted: The same two for the training data, on which the maps from clusters to labels are learnt.
        num_clusters: K of each level.

    Raises:
        ValueError: See :func:`contingency_table`; or there is no level.

    Example:
        >>> y = torch.tensor([0, 1, 1])
        >>> print(clustering_report({"y_1": 1 - y, "y_2": 0 * y}, y))
        level   Hungarian  majority    NMI    ARI       used  effective
        y_1        100.0%    100.0%  1.000  1.000     2 of 2        1.9
        y_2         66.7%     66.7%  0.000  0.000     1 of 1        1.0
    """
    if not clusters:
        raise ValueError("There is nothing to score: clusters is empty. Give {'y_1': clusters}?")
    levels = {}
    for name, numbers in clusters.items():
        known = None if fitted is None else (fitted[0][name], fitted[1])
        number = None if num_clusters is None else num_clusters[name]
        levels[name] = clustering_scores(numbers, labels, fitted=known, num_clusters=number)
    return ClusteringReport(levels)
