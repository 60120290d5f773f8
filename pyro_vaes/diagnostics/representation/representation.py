"""What the posterior means know about labels that training has not seen.

    K-means          clusters of the means, matched to the labels one to one: accuracy and macro-averaged F1
    kNN              the label of the majority of the k nearest means
    linear probe     multinomial logistic regression on standardised means

The two probes are fitted on few and on all labels; with few, on several random subsets with all labels represented
alike, whose spread is reported.

References:
    | MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019)
    | https://arxiv.org/abs/1901.01498
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pyro_vaes.tables import text_table

from ..summaries import require_positive
from .clustering import hungarian_map

Probe = Callable[..., float]


def labelled_subset(labels: Tensor, num_labels: int, *, seed: int = 0) -> Tensor:
    """Random rows, as equally many of each label as there are: of c labels, ``num_labels // c`` or one more.

    Arguments:
        labels: ``(N,)``.
        num_labels: Number of rows, at most N.
        seed: Seed of the choice.

    Returns:
        Indices with shape ``(num_labels,)``, sorted.

    Raises:
        ValueError: There are fewer rows.

    Example:
        >>> labels = torch.tensor([0] * 90 + [1] * 10)
        >>> labels[labelled_subset(labels, 8)]
        tensor([0, 0, 0, 0, 1, 1, 1, 1])
    """
    if not 1 <= num_labels <= len(labels):
        raise ValueError(f"num_labels={num_labels} rows cannot be chosen from {len(labels)}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.cpu().numpy()[order]
    same = shuffled[:, None] == np.unique(shuffled)
    rank = (same.cumsum(0) * same).sum(1)  # among the rows of the same label
    chosen = order[np.argsort(rank, kind="stable")[:num_labels]]
    return torch.from_numpy(np.sort(chosen))


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, neighbors: int = 5
) -> float:
    """Share of test rows whose nearest training rows, Euclidean and by majority, have their label.

    Arguments:
        train: Features ``(N, d)``.
        train_labels: Their labels ``(N,)``.
        test: Features ``(M, d)``.
        test_labels: Their labels ``(M,)``.
        neighbors: How many nearest rows vote; all, where there are fewer.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> knn_accuracy(x, y, x + 0.1, y, neighbors=1)
        1.0
    """
    probe = KNeighborsClassifier(min(neighbors, len(train)))
    return _accuracy(probe, train, train_labels, test, test_labels)


def linear_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, penalty: float = 1.0
) -> float:
    """Share of test rows that a multinomial logistic regression labels right; features are standardised first.

    Arguments:
        train: Features ``(N, d)``.
        train_labels: Their labels ``(N,)``, two different ones at least.
        test: Features ``(M, d)``.
        test_labels: Their labels ``(M,)``.
        penalty: Strength of the squared penalty on the weights, scikit-learn's 1 / C.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> linear_accuracy(x, y, x, y)
        1.0
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=2000))
    return _accuracy(probe, train, train_labels, test, test_labels)


def _accuracy(probe: BaseEstimator, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    _check(train, train_labels)
    _check(test, test_labels)
    probe.fit(train.cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test.cpu().numpy(), test_labels.cpu().numpy()))


def _check(features: Tensor, labels: Tensor) -> None:
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"Features have shape (N, d) and labels (N,), but got {tuple(features.shape)} and {tuple(labels.shape)}; "
            "flatten the features, or take argmax(-1) of one-hot labels?"
        )


def kmeans_scores(
    features: Tensor, labels: Tensor, *, num_clusters: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Accuracy and F1 of K-means clusters, matched one to one to the labels of the same rows.

    F1 is the unweighted mean of the labels' own, so a label without a cluster counts as 0.

    Arguments:
        features: ``(N, d)``.
        labels: Numbers 0, 1, .., ``(N,)``.
        num_clusters: As many as there are labels by default; the best of ten starts is taken.
        seed: Seed of the starts.

    Returns:
        Accuracy and F1, both in [0, 1].

    Example:
        >>> kmeans_scores(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([1, 1, 0, 0]))
        (1.0, 1.0)
    """
    _check(features, labels)
    number = len(labels.unique()) if num_clusters is None else num_clusters
    means = KMeans(number, n_init=10, random_state=seed).fit_predict(features.cpu().numpy())
    clusters, truth = torch.from_numpy(means).long(), labels.cpu()
    predicted = hungarian_map(clusters, truth)[clusters]
    f1 = f1_score(truth.numpy(), predicted.numpy(), labels=truth.unique().numpy(), average="macro", zero_division=0)
    return (predicted == truth).double().mean().item(), float(f1)


@dataclass(frozen=True)
class ProbeAccuracy:
    """Test accuracy in [0, 1] of a probe fitted on so many labels: mean and standard deviation over the subsets."""

    num_labels: int
    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.1%}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.1%}")


@dataclass(frozen=True)
class RepresentationReport:
    """What posterior means know about labels, see the module; prints itself.

    Attributes:
        kmeans_accuracy, kmeans_f1: Of K-means on the test means, in [0, 1].
        knn, linear: Accuracies of the probes on the test means, one for each number of labels.
        num_units: Dimension of the means.
        num_test: Number of test data.
    """

    kmeans_accuracy: float
    kmeans_f1: float
    knn: tuple[ProbeAccuracy, ...]
    linear: tuple[ProbeAccuracy, ...]
    num_units: int
    num_test: int

    def __repr__(self) -> str:
        rows = [(k.num_labels, str(k), str(line)) for k, line in zip(self.knn, self.linear, strict=True)]
        lines = text_table("labels:>8 | kNN:>17 | linear:>17", rows)
        lines.append(f"K-means accuracy {self.kmeans_accuracy:.1%}, F1 {self.kmeans_f1:.3f}")
        lines.append(f"on {self.num_test} test data, {self.num_units} units; ± is the spread over subsets of labels")
        return "\n".join(lines)


def representation_report(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    num_labels: Sequence[int | None] = (100, 1000, None),
    num_subsets: int = 5,
    neighbors: int = 5,
    seed: int = 0,
) -> RepresentationReport:
    """All measures of a representation, such as the posterior means of training and test data.

    Arguments:
        train: Features ``(N, d)`` of the training data.
        train_labels: Their labels ``(N,)``.
        test: Features ``(M, d)`` of the test data.
        test_labels: Their labels ``(M,)``.
        num_labels: Numbers of labels that the probes are fitted on; None for all.
        num_subsets: Random subsets for each number but all.
        neighbors: How many nearest rows vote in kNN.
        seed: Seed of the subsets and of K-means.

    Raises:
        ValueError: Shapes do not fit, or there are fewer training labels than asked for.

    Example:
        >>> y = torch.arange(200) % 2
        >>> x = torch.randn(200, 3) + 6 * y.unsqueeze(-1)
        >>> print(representation_report(x, y, x, y, num_labels=(10, None)))
          labels              kNN           linear
              10    100.0% ± 0.0%    100.0% ± 0.0%
             200           100.0%           100.0%
        K-means accuracy 100.0%, F1 1.000
        on 200 test data, 3 units; ± is the spread over subsets of labels
    """
    _check(train, train_labels)
    _check(test, test_labels)
    require_positive(num_subsets=num_subsets)
    sizes = [len(train) if n is None else n for n in num_labels]
    if max(sizes, default=0) > len(train):
        raise ValueError(f"num_labels asks for {max(sizes)} labels, but there are {len(train)} training data.")

    def probed(probe: Probe, number: int) -> ProbeAccuracy:
        """Mean and standard deviation over random subsets; there is but one of all labels."""
        repeats = num_subsets if number < len(train) else 1
        subsets = [labelled_subset(train_labels, number, seed=seed + i) for i in range(repeats)]
        each = [probe(train[rows], train_labels[rows], test, test_labels) for rows in subsets]
        deviation = float(np.std(each, ddof=1)) if repeats > 1 else math.nan
        return ProbeAccuracy(number, float(np.mean(each)), deviation)

    nearest = partial(knn_accuracy, neighbors=neighbors)

    accuracy, f1 = kmeans_scores(test, test_labels, seed=seed)
    return RepresentationReport(
        kmeans_accuracy=accuracy,
        kmeans_f1=f1,
        knn=tuple(probed(nearest, n) for n in sizes),
        linear=tuple(probed(linear_accuracy, n) for n in sizes),
        num_units=train.shape[1],
        num_test=len(test),
    )
