"""Distributions whose elements are drawn one after the other, each given those before it."""

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .vector_distribution import TensorDistribution

Conditionals = Callable[[Tensor, Tensor], TorchDistribution]


class Autoregressive(TensorDistribution):
    r"""A product of conditionals over the elements of a vector or an image, given a context.

    .. math:: p(x \mid h) = \prod_i p(x_i \mid x_{<i}, h)

    ``log_prob`` is one parallel pass, in which every conditional sees the given value (teacher forcing); ``sample`` is
    sequential. There is no closed form of the mean: average draws, or look at :meth:`given`.

    Arguments:
        conditionals: ``(value, context) -> distribution`` over the whole event, factorised, whose element i depends on
            the elements before i alone (in row-major order, unless it brings a ``walk``). Leading dimensions of value
            and context broadcast. An object with a method ``walk(value, context)`` is sampled faster: it yields, in
            the order of drawing, a view of ``value`` and the distribution of what is to be written there before the
            next one is asked for.
        context: h, with shape ``(*batch_shape, *context_shape)``.
        event_shape: Shape of x.
        support: Constraint of x, with as many event dimensions.
        context_dim: Number of dimensions of ``context_shape``; those of x by default.

    Raises:
        ValueError: The support is one of single elements, or the context has too few dimensions.

    References:
        | The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        | https://proceedings.mlr.press/v15/larochelle11a.html

    Example:
        >>> from pyro.distributions import Bernoulli
        >>> def conditionals(x, h):  # logits h_i + x_1 + .. + x_{i-1}
        ...     return Bernoulli(logits=h + x.cumsum(-1) - x).to_event(1)
        >>> p = Autoregressive(conditionals, torch.zeros(5, 3), (3,), constraints.independent(constraints.boolean, 1))
        >>> p.sample((2,)).shape, p.log_prob(torch.zeros(3))  # 3 log 1/2
        (torch.Size([2, 5, 3]), tensor([-2.0794, -2.0794, -2.0794, -2.0794, -2.0794]))
    """

    has_rsample = False

    def __init__(
        self,
        conditionals: Conditionals,
        context: Tensor,
        event_shape: torch.Size | tuple[int, ...],
        support: constraints.Constraint,
        *,
        context_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        event_shape = torch.Size(event_shape)
        context_dim = len(event_shape) if context_dim is None else context_dim
        if support.event_dim != len(event_shape):
            raise ValueError(
                f"support={support} constrains values with {support.event_dim} dimensions, but event_shape="
                f"{tuple(event_shape)} has {len(event_shape)}; wrap it in constraints.independent(support, n)?"
            )

        if context.dim() < context_dim:
            raise ValueError(
                f"context has shape {tuple(context.shape)}, but context_dim={context_dim} of its dimensions belong to "
                "one datum; add the missing ones, or pass context_dim?"
            )

        self.conditionals, self.context, self.context_dim, self._support = conditionals, context, context_dim, support
        super().__init__(context.shape[: context.dim() - context_dim], event_shape, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {"context": constraints.independent(constraints.real, self.context_dim)}

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self._support

    def given(self, value: Tensor) -> TorchDistribution:
        """The conditionals p(x_i | x_<i, h) at ``value``, as one factorised distribution over the event."""
        return self.conditionals(value, self.context)

    def _log_density(self, value: Tensor) -> Tensor:
        log_prob = self.given(value).log_prob(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return log_prob.expand(torch.broadcast_shapes(lead, self.batch_shape))  # conditionals may ignore the context

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        wide = self.expand(torch.Size(sample_shape) + self.batch_shape)
        context, value = wide.context, wide.context.new_zeros(wide.shape())
        if not value.numel():
            return value

        walk = getattr(self.conditionals, "walk", None)
        if walk is not None:
            for view, fn in walk(value, context):
                view.copy_(fn.sample())
            return value

        # a parallel pass for each element: right for any conditionals, and slow
        first = -len(self.event_shape)
        flat = value.flatten(first)  # a view: value is contiguous
        for i in range(flat.shape[-1]):
            flat[..., i] = self.conditionals(value, context).sample().flatten(first)[..., i]
        return value
