"""Mixtures that grow by one component at a time, with the components' draws and densities within reach.

Q_0 = q_0,    Q_m = (1 - eps_m) Q_{m-1} + eps_m q_m,    m = 1..M
"""

from collections.abc import Sequence

import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_vaes.errors import UsageError, use_bound

from .vector_distribution import TensorDistribution


def log_weights(eps_logits: Tensor) -> Tensor:
    """The log weights of M + 1 components from the recursion's M logits.

        log alpha_m = log sigmoid(a_m) + sum_{j > m} log sigmoid(-a_j),    without the first term for m = 0

    Arguments:
        eps_logits: a_1, .., a_M with shape ``(..., M)``, any real numbers.

    Returns:
        Tensor with shape ``(..., M + 1)``, whose exponentials sum to one.

    Example:
        >>> log_weights(-torch.arange(1.0, 4.0).log()).exp()  # eps_m = 1 / (m + 1)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    first = eps_logits.new_zeros((*eps_logits.shape[:-1], 1))
    kept = logsigmoid(-eps_logits).flip(-1).cumsum(-1).flip(-1)  # sum over j >= m of log(1 - eps_j)
    return torch.cat([first, logsigmoid(eps_logits)], -1) + torch.cat([kept, first], -1)


class RecursiveMixture(TensorDistribution):
    r"""A mixture of M + 1 distributions of any kind, weighted by the recursion.

    .. math::
        Q_M(z) = \sum_{m=0}^M \alpha_m q_m(z), \qquad
        \log \alpha_m = \log \sigma(a_m) + \sum_{j=m+1}^M \log \sigma(-a_j), \quad \log \sigma(a_0) := 0

    with :math:`\epsilon_m = \sigma(a_m)`. All is computed from the logits a in log space. A draw picks one component,
    so there is no ``rsample``; :meth:`stratified_rsample` draws from every component, reparameterised.

    Arguments:
        components: M + 1 distributions q_0, .., q_M with the same event shape; their batch shapes broadcast.
        eps_logits: The logits a_1, .., a_M with shape ``(..., M)``, or a sequence of M tensors ``(...)``. These are
            kept apart, so that the gradient of one does not touch where the others come from.

    Attributes:
        num_components: Number M + 1 of components.

    Raises:
        ValueError: The numbers of components and logits, or the components' event shapes, do not fit together.

    References:
        | Recursive Inference for Variational Autoencoders (Kim & Pavlovic, 2020)
        | https://arxiv.org/abs/2011.08544

    Example:
        >>> from pyro.distributions import Normal
        >>> q = RecursiveMixture([Normal(torch.zeros(5, 2), s).to_event(1) for s in (0.5, 2.0)], torch.zeros(5, 1))
        >>> q.sample((3,)).shape, q.stratified_rsample().shape, q.log_alpha.exp()[0]
        (torch.Size([3, 5, 2]), torch.Size([2, 5, 2]), tensor([0.5000, 0.5000]))
    """

    arg_constraints = {"eps_logits": constraints.real_vector}
    has_rsample = False

    def __init__(
        self,
        components: Sequence[TorchDistribution],
        eps_logits: Tensor | Sequence[Tensor],
        validate_args: bool | None = None,
    ) -> None:
        components = tuple(components)

        logits = eps_logits.unbind(-1) if isinstance(eps_logits, Tensor) and eps_logits.dim() else tuple(eps_logits)
        if len(components) != len(logits) + 1:
            raise ValueError(
                f"{len(components)} components need {max(len(components) - 1, 0)} logits in the last dimension of "
                f"eps_logits, one for each component but the first, but got {len(logits)}."
            )

        event_shapes = {tuple(c.event_shape) for c in components}
        if len(event_shapes) > 1:
            raise ValueError(
                f"The components of a mixture need one event shape, but got {sorted(event_shapes)}. Is .to_event(1) "
                "missing on one of them?"
            )

        batch_shape = torch.broadcast_shapes(*(a.shape for a in logits), *(c.batch_shape for c in components))
        self.components = tuple(c if c.batch_shape == batch_shape else c.expand(batch_shape) for c in components)
        self.logits = tuple(a.expand(batch_shape) for a in logits)
        self._batch_shape = batch_shape  # what eps_logits needs to be validated
        self.num_components = len(components)

        super().__init__(batch_shape, components[0].event_shape, validate_args=validate_args)

    @property
    def eps_logits(self) -> Tensor:
        """The logits a_1, .., a_M, shape ``(*batch_shape, M)``."""
        if self.logits:
            return torch.stack(self.logits, dim=-1)
        innermost = self.components[0]
        while hasattr(innermost, "base_dist"):  # a flow has no mean of its own
            innermost = innermost.base_dist
        return innermost.mean.new_zeros((*self.batch_shape, 0))

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.components[0].support

    @property
    def log_alpha(self) -> Tensor:
        """The log weights log alpha_m with shape ``(*batch_shape, M + 1)``; their exponentials sum to one."""
        return log_weights(self.eps_logits)

    def component_log_prob(self, value: Tensor) -> Tensor:
        """log q_m(value) for every component, with shape ``(..., M + 1)``."""
        return torch.stack([c.log_prob(value) for c in self.components], dim=-1)

    def _log_density(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self.log_alpha + self.component_log_prob(value), dim=-1)

    def level(self, m: int) -> "RecursiveMixture":
        """Q_m, the mixture of the first m + 1 components.

        Raises:
            ValueError: m is not between 0 and M.
        """
        if not 0 <= m < self.num_components:
            raise ValueError(
                f"This mixture has the levels 0 to {self.num_components - 1}, but level {m} was asked for."
            )
        return RecursiveMixture(self.components[: m + 1], self.logits[:m], validate_args=False)

    def stratified_rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws from every component, ``(M + 1, *sample_shape, *batch_shape, *event_shape)``, reparameterised.

        Raises:
            ValueError: A component has no ``rsample``.
        """
        without = [type(c).__name__ for c in self.components if not c.has_rsample]
        if without:
            raise UsageError(
                f"Stratified draws need reparameterised components, but {without} have no rsample.",
                use_bound(detail=", whose score-function gradient needs none"),
            )
        return torch.stack([c.rsample(sample_shape) for c in self.components])

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            index = Categorical(logits=self.log_alpha, validate_args=False).sample(sample_shape)
            draws = torch.stack([c.sample(sample_shape) for c in self.components])  # (M + 1, *S, *B, *E)
            index = index.reshape(index.shape + (1,) * len(self.event_shape))
            return draws.take_along_dim(index.unsqueeze(0), 0).squeeze(0)

    def _average(self, values: list[Tensor]) -> Tensor:
        alpha = self.log_alpha.exp().movedim(-1, 0)  # (M + 1, *B)
        alpha = alpha.reshape(alpha.shape + (1,) * len(self.event_shape))
        return (alpha * torch.stack(values)).sum(0)

    @property
    def mean(self) -> Tensor:
        return self._average([c.mean for c in self.components])

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self._average([c.variance + (c.mean - mean).square() for c in self.components])
