"""Mixtures of discretised logistics: the likelihood of PixelCNN++ for pixels with finitely many levels."""

from collections.abc import Callable

import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .vector_distribution import TensorDistribution


class grid(constraints.Constraint):  # lower case, as torch's own constraints are
    """The values {0, 1/(L-1), 2/(L-1), ..., 1}: pixels with L levels, scaled to [0, 1].

    Arguments:
        num_levels: Number L of levels, at least 2.
        tolerance: How far from a level a value may lie, in units of the step 1/(L-1); 0.01 passes what
            float32 makes of ``uint8 / 255`` and refuses anything visibly off the grid.

    Example:
        >>> import torch
        >>> grid(256).check(torch.tensor([0.0, 7 / 255, 0.5, 2.0]))
        tensor([ True,  True, False, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, num_levels: int, tolerance: float = 0.01) -> None:
        self.num_levels, self.tolerance = num_levels, tolerance
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        steps = value * (self.num_levels - 1)
        on_grid = (steps - steps.round()).abs() <= self.tolerance
        return on_grid & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"grid(num_levels={self.num_levels})"


class DiscretizedLogisticMixture(TensorDistribution):
    r"""A mixture over pixel levels {0, 1/(L-1), ..., 1}; each component is a logistic density, binned.

    .. math::
        P(x) = \sum_{j=1}^K \pi_j \left[ \sigma\!\left(\tfrac{x + h - \mu_j}{s_j}\right)
        - \sigma\!\left(\tfrac{x - h - \mu_j}{s_j}\right) \right], \quad h = \tfrac{1}{2 (L-1)}

    with the lowest bin open to minus and the highest to plus infinity, so that the levels' probabilities sum
    to one.

    Arguments:
        logits: Unnormalised log weights with shape ``(..., K)``.
        loc: Locations with shape ``(..., K)``, in the units of x (pixels in [0, 1]), any real number.
        scale: Scales of the logistics with shape ``(..., K)``, positive (the standard deviation is 1.8 times
            that).
        num_levels: Number L of levels, at least 2.

    Raises:
        ValueError: The arguments do not agree in K, their shapes do not broadcast, or ``num_levels`` is below
            2.

    References:
        | PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications
          (Salimans et al., 2017)
        | https://arxiv.org/abs/1701.05517

    Example:
        >>> d = DiscretizedLogisticMixture(torch.zeros(5, 3), torch.rand(5, 3), torch.full((5, 3), 0.1))
        >>> x = d.sample((2,))
        >>> x.shape, d.log_prob(x).shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    has_enumerate_support = True

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(num_levels, int) or num_levels < 2:
            raise ValueError(f"num_levels must be a whole number of at least 2, but got {num_levels!r}.")

        shapes = [tuple(t.shape) for t in (logits, loc, scale)]
        if min(map(len, shapes)) < 1 or len({shape[-1] for shape in shapes}) > 1:
            raise ValueError(
                "logits, loc and scale hold one number per mixture component in their last dimension, but "
                f"have shapes {', '.join(map(str, shapes))}. Unsqueeze a last dimension of size 1 for a "
                "single component?"
            )

        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        self.num_levels = num_levels
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return grid(self.num_levels)

    def _log_density(self, value: Tensor) -> Tensor:
        steps = self.num_levels - 1
        level = torch.round(value * steps).unsqueeze(-1)  # (..., 1) against the components' (..., K)
        upper = ((level + 0.5) / steps - self.loc) / self.scale
        lower = ((level - 0.5) / steps - self.loc) / self.scale
        # log(sigmoid(u) - sigmoid(l)) = logsigmoid(u) + logsigmoid(-l) + log(1 - exp(l - u)) without
        # cancellation; u -> inf in the top bin and l -> -inf in the lowest one drop the terms that hold them
        lowest, highest = level <= 0, level >= steps
        log_mass = (
            logsigmoid(upper).where(~highest, 0.0)
            + logsigmoid(-lower).where(~lowest, 0.0)
            + torch.log(-torch.expm1(-1 / (steps * self.scale))).where(~(lowest | highest), 0.0)
        )
        return torch.logsumexp(self.logits.log_softmax(-1) + log_mass, dim=-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.logits.shape
        steps = self.num_levels - 1
        with torch.no_grad():
            component = Categorical(logits=self.logits, validate_args=False).sample(sample_shape).unsqueeze(-1)
            loc, scale = (t.expand(shape).gather(-1, component).squeeze(-1) for t in (self.loc, self.scale))
            uniform = torch.rand_like(loc).clamp(min=torch.finfo(loc.dtype).tiny)  # logit(0) is infinite
            # rounding a logistic draw to the nearest level, ends included, is exactly the binning of log_prob
            return torch.round((loc + scale * torch.logit(uniform)) * steps).clamp(0, steps) / steps

    def enumerate_support(self, expand: bool = True) -> Tensor:
        steps = self.num_levels - 1
        values = torch.arange(self.num_levels, dtype=self.loc.dtype, device=self.loc.device) / steps
        values = values.reshape(-1, *(1 for _ in self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def _expect(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """E[function(x, log P(x))], level after level: all at once would take num_levels times the memory."""
        total = torch.zeros_like(self.loc[..., 0])
        for x in self.enumerate_support(expand=False):
            log_prob = self.log_prob(x)
            total = total + log_prob.exp() * function(x, log_prob)
        return total

    @property
    def mean(self) -> Tensor:
        return self._expect(lambda x, _: x)

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self._expect(lambda x, _: (x - mean).square())

    def entropy(self) -> Tensor:
        return self._expect(lambda _, log_prob: -log_prob)
