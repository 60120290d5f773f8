"""The continuous Bernoulli in its natural parameter, stable for every logit."""

import math
from collections.abc import Callable

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.kl import register_kl

# log(sinh a / a) = a^2/6 - a^4/180 + ...; the first term omitted below NEAR_ZERO is 1e-15 (variance: 1e-12)
SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)
NEAR_ZERO = 0.3


def _split(a: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where ``|a|`` is below the threshold, and two copies of ``a`` that are harmless on the other side."""
    near = a.abs() < threshold
    return near, a.where(near, 0.0), a.abs().where(~near, 1.0)


def _derivative(a: Tensor, order: int, exact: Callable[[Tensor], Tensor]) -> Tensor:
    """The derivative of that order (0, 1 or 2) of ``log(sinh a / a)``.

    Near zero it is a series, by Horner's rule; elsewhere ``exact`` computes it from ``|a|``.
    """
    near, small, large = _split(a, NEAR_ZERO)
    series = torch.zeros_like(a)
    for n, coefficient in reversed(list(enumerate(SERIES, start=1))):
        series = series * small.square() + coefficient * math.perm(2 * n, order)
    return torch.where(near, series * small ** (2 - order), exact(large))


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""A density on [0, 1], for grey pixels: the exponential family with sufficient statistic x.

    .. math:: \log p(x) = \eta x - A(\eta), \quad
        A(\eta) = \log \frac{e^\eta - 1}{\eta} = a + \log \frac{\sinh a}{a}, \quad a = \eta / 2

    Same arguments and methods as in torch, whose version it replaces because that one is wrong in two places:
    it clamps ``probs`` in the normalising constant but not in the exponent, so that beyond \|logits\| = 16
    (float32) the density no longer integrates to one (0.6 nats off at 30) and the constant has no gradient;
    and it computes the moments from differences of nearly equal numbers around probs = 0.5, where (outside
    ``lims``) the float32 variance is 0.25 in place of 0.083. Here everything is a function of the logits,
    with a series around zero.

    Arguments:
        probs: The parameter in [0, 1] (not the mean); or
        logits: its log-odds, any real number.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
          (Loaiza-Ganem and Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845

    Example:
        >>> d = ContinuousBernoulli(logits=torch.tensor([-30.0, 0.0, 30.0]))
        >>> d.mean
        tensor([0.0333, 0.5000, 0.9667])
        >>> d.log_prob(torch.tensor([0.0, 0.5, 1.0]))
        tensor([3.4012, 0.0000, 3.4012])
    """

    def _log_normalizer(self, logits: Tensor) -> Tensor:
        return logits / 2 + _derivative(
            logits / 2,
            order=0,
            exact=lambda a: a + torch.log(-torch.expm1(-2 * a)) - torch.log(2 * a),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self._log_normalizer(self.logits)

    @property
    def mean(self) -> Tensor:
        return 0.5 + 0.5 * _derivative(
            self.logits / 2,
            order=1,  # the Langevin function, odd as the series is
            exact=lambda a: self.logits.sign() * (1 / torch.tanh(a) - 1 / a),
        )

    @property
    def variance(self) -> Tensor:
        return 0.25 * _derivative(
            self.logits / 2,
            order=2,  # 1 / sinh^2 a in terms of exp(-2a), which cannot overflow
            exact=lambda a: a.pow(-2) - 4 * torch.exp(-2 * a) / torch.expm1(-2 * a).square(),
        )

    def entropy(self) -> Tensor:
        return self._log_normalizer(self.logits) - self.logits * self.mean

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = torch.broadcast_tensors(self.logits, value)
        near = logits == 0  # expm1 is exact everywhere else
        magnitude = logits.abs().where(~near, 1.0)
        # F(x; eta) = (1 - exp(eta x)) / (1 - exp(eta)) for eta < 0, and F(x; eta) = 1 - F(1 - x; -eta)
        below = torch.where(logits > 0, 1 - value, value)
        share = torch.expm1(-magnitude * below) / torch.expm1(-magnitude)
        return torch.where(near, value, torch.where(logits > 0, 1 - share, share))

    def icdf(self, value: Tensor) -> Tensor:
        logits, value = torch.broadcast_tensors(self.logits, value)
        # near zero: the cumulants of a Bernoulli(value), whose generating function log(1 - u + u e^eta) is
        # eta * icdf
        near, small, magnitude = _split(logits, 0.02)
        w = value * (1 - value)
        fifth = (1 - 2 * value) * (1 - 12 * w) / 120
        series = value + small * w * (
            1 / 2 + small * ((1 - 2 * value) / 6 + small * ((1 - 6 * w) / 24 + small * fifth))
        )

        # F^-1(u; -m) = log(1 - u + u exp(-m)) / -m, and F^-1(u; m) = 1 - F^-1(1 - u; -m)

        u = torch.where(logits > 0, 1 - value, value)
        upper = (u > 0.5) & (magnitude > 1)  # where log1p would lose 1 - u + u exp(-m) to rounding
        high, low = u.where(upper, 1.0), u.where(~upper, 0.0)
        log_mix = torch.where(
            upper,
            torch.logaddexp(torch.log1p(-high), torch.log(high) - magnitude),
            torch.log1p(low * torch.expm1(-magnitude)),
        )
        quantile = log_mix / -magnitude
        return torch.where(near, series, torch.where(logits > 0, 1 - quantile, quantile))


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    """The Bregman divergence of A; the rule that torch registers takes its clamped constants."""
    return p.mean * (p.logits - q.logits) - p._log_normalizer(p.logits) + q._log_normalizer(q.logits)
