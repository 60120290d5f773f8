"""What a set of importance weights says: estimate, error, effective size, tail."""

import math
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor


class Average(NamedTuple):
    """The average of K weights for each of B data, tensors ``(B,)``.

    Attributes:
        estimate: The log of the mean weight.
        error: Its standard error by the delta method; nan for one weight.
        ess: The effective sample size.
    """

    estimate: Tensor
    error: Tensor
    ess: Tensor


def average_weights(log_w: Tensor) -> Average:
    """The average of weights from their logarithms ``(K, B)``."""
    num = len(log_w)
    estimate = log_w.logsumexp(0) - math.log(num)
    relative = (log_w - estimate).exp()  # weights over their mean

    error = torch.full_like(estimate, math.nan)
    if num > 1:
        error = relative.std(0) / math.sqrt(num)
    ess = relative.sum(0).square() / relative.square().sum(0)
    return Average(estimate, error, ess)


def pareto_khat(log_w: Tensor) -> Tensor:
    """Pareto shape of the largest weights of each datum.

    The tail is what exceeds the largest weight but M, with M = min(K / 5, 3 sqrt(K)). Where
    the M largest log weights agree within 1e-3 nats there is no tail: minus infinity. Where
    fewer than 5 weights exceed a threshold that others tie with, the fit is hopeless:
    infinity.

    Arguments:
        log_w: Log weights in nats, up to a constant for each datum, shape ``(K, N)``.

    Returns:
        Tensor with shape ``(N,)``; nan below 25 particles, or where log weights are not
        numbers.
    """
    num = len(log_w)
    if num < 25:
        return log_w.new_full(log_w.shape[1:], math.nan)
    tail = math.ceil(min(0.2 * num, 3.0 * math.sqrt(num)))
    largest, _ = log_w.double().cpu().topk(tail + 1, dim=0)
    return log_w.new_tensor([_tail_shape(column) for column in largest.T])


def _tail_shape(largest: Tensor) -> float:
    """Shape of the weights in excess of the last, from descending log weights ``(M + 1,)``."""
    if not largest[0].isfinite():
        return math.nan
    if largest[0] - largest[-1] < 1e-3:  # below the rounding of float32 log-densities
        return -math.inf

    weights = (largest - largest[0]).exp()
    excess = weights - weights[-1]
    excess = excess[excess > 0]
    return fit_generalized_pareto(excess)[0] if len(excess) >= 5 else math.inf
