"""The sites of clusters, some of which may be known: labels with shape ``(B,)``, -1 where there is none.

A known label is evidence. The model weighs what contradicts it with 0; the guide puts all its mass on it, and adds the
classification term ``w log q(y | x)`` to the bound, without which q(y | x) would not learn from labels at all. It
belongs to the objective alone: importance weights, code lengths and likelihoods are the same for every w.

References:
    | Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014)
    | https://arxiv.org/abs/1406.5298
"""

import math

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyro_vaes.ops import assert_in_graph, is_capturing
from pyro_vaes.programs import mark_statements, marks

ENUMERATE = marks(enumerated=True)


def sample_cluster(name: str, weights: Categorical, labels: Tensor | None) -> Tensor:
    """The model's site: y ~ Categorical, with the evidence of the labels."""
    y = pyro.sample(name, weights, infer=ENUMERATE)
    if labels is not None:
        agrees = (labels < 0) | (y == labels)
        with mark_statements(marks(evidence_for=name)):  # what is summed has one KL weight
            pyro.factor(f"{name}_label", torch.where(agrees, 0.0, -math.inf).to(weights.logits))
    return y


def observe_cluster(name: str, latent: str, log_joint: Tensor, labels: Tensor) -> None:
    """The model without the site: the evidence p(y | z) of the labels.

    Beside a mixture as the prior of z it makes p(z) p(y | z) = p(z, y) of a known label y, with one KL weight.

    Arguments:
        name: Name of the missing site.
        latent: The site of z.
        log_joint: log p(z, y) at a draw of z, ``(..., B, K)``.
        labels: ``(B,)``.
    """
    label = labels.clamp(min=0).expand(log_joint.shape[:-1]).unsqueeze(-1)
    log_p = torch.log_softmax(log_joint, -1).gather(-1, label).squeeze(-1)  # (..., B)
    with mark_statements(marks(evidence_for=latent)):
        pyro.factor(f"{name}_label", torch.where(labels >= 0, log_p, 0.0))


def guess_cluster(name: str, logits: Tensor, labels: Tensor | None, label_weight: float) -> Tensor:
    """The guide's site: y ~ q(y | x), or the label where there is one.

    Arguments:
        name: Name of the site.
        logits: Logits of q(y | x), ``(B, K)``, in any normalisation.
        labels: ``(B,)`` or None.
        label_weight: w of the classification term.
    """
    if labels is None:
        return pyro.sample(name, Categorical(logits=logits), infer=ENUMERATE)
    if label_weight > 0:
        loss = cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        with mark_statements(marks(objective_only=True)):  # q's side is subtracted
            pyro.factor(f"{name}_classification", label_weight * loss, has_rsample=True)

    log_q = torch.log_softmax(logits, -1)
    point = one_hot(labels.clamp(min=0), logits.shape[-1], logits).log()
    known = (labels >= 0).unsqueeze(-1)
    infer = marks(enumerated=True, may_be_point=True)
    return pyro.sample(name, Categorical(logits=torch.where(known, point, log_q)), infer=infer)


def one_hot(y: Tensor, num_clusters: int, like: Tensor) -> Tensor:
    """Indicators ``(..., K)`` of clusters ``(...)``, with the dtype of ``like``."""
    return torch.eye(num_clusters, dtype=like.dtype, device=like.device)[y]


def as_labels(labels: Tensor | None, x: Tensor | None, num_clusters: int) -> Tensor | None:
    """Labels of any integer dtype as int64, after a look at them.

    Arguments:
        labels: ``(B,)``, whole numbers from 0 to K - 1, or -1 where there is none; or None.
        x: The data, ``(B, ...)``.
        num_clusters: K.

    Raises:
        ValueError: They are no whole numbers, not one for each datum, or out of range. The range of labels on another
            device than the CPU is looked at where no gradients are taken, as in the check before training, because
            each look waits for the device.
    """
    if labels is None:
        return None
    rows = "there are no data" if x is None else f"there are {len(x)} data"
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels must be a tensor of whole numbers with shape (B,), but got {type(labels).__name__} where {rows}; "
            "torch.as_tensor(labels)?"
        )

    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or x is None or labels.shape != (len(x),):
        raise ValueError(
            f"labels must be whole numbers with shape (B,), -1 where there is none, but got {labels.dtype} with shape "
            f"{tuple(labels.shape)} where {rows}."
        )

    labels = labels.long()

    looked_at = len(labels) and (labels.device.type == "cpu" or not torch.is_grad_enabled())
    if looked_at and is_capturing():
        known = (labels >= -1) & (labels < num_clusters)
        wanted = f"Labels must lie in 0..{num_clusters - 1}, or be -1 for none."
        assert_in_graph(known, wanted)
    elif looked_at and not -1 <= labels.min() <= labels.max() < num_clusters:
        raise ValueError(
            f"Labels run from {labels.min().item()} to {labels.max().item()}, but there are {num_clusters} clusters: "
            f"wanted 0..{num_clusters - 1}, and -1 for none."
        )

    return labels
