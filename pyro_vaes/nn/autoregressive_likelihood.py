"""Autoregressive likelihoods: the decoder's output is the context of a network that reads x as well."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vaes.distributions import Autoregressive

from .autoregressive import AutoregressiveNetwork
from .likelihoods import Likelihood


class AutoregressiveLikelihood(nn.Module):
    r"""x ~ prod_i p(x_i | x_<i, F) with the decoder's output F as context.

    .. math:: p(x_i \mid x_{<i}, F) = \text{likelihood}(\text{network}(x, F)_i)

    The network reads x scaled to [-1, 1] where the likelihood has a smallest and a largest value, so that the zeros
    around an image are neither.

    Arguments:
        likelihood: The output, with the event dimensions of the network: ``BernoulliLikelihood(event_dim=3)`` for
            binary images, ``CategoricalLikelihood(256, event_dim=3)``, ``DiscretizedLogisticMixtureLikelihood``, ...
            Parameters of its own, such as a Gaussian's scale, must be one number rather than one per element.
        network: :class:`~pyro_vaes.nn.PixelCNN`, :class:`~pyro_vaes.nn.MADE`, or your own.

    Attributes:
        event_shape: Shape of x.
        context_shape: Shape of the decoder's output for one datum.

    Raises:
        ValueError: Network and likelihood differ in the numbers per element or in the event's dimensions.

    References:
        | Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016)
        | https://arxiv.org/abs/1606.05328

    Example:
        >>> from pyro_vaes.nn import BernoulliLikelihood, PixelCNN, pixel_cnn_window
        >>> network = PixelCNN((1, 8, 8), 16, pixel_cnn_window(4, 2), context_channels=4)
        >>> p = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)(torch.zeros(5, 4, 8, 8))
        >>> x = p.sample()
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    def __init__(self, likelihood: Likelihood, network: AutoregressiveNetwork) -> None:
        super().__init__()
        known = isinstance(likelihood, Likelihood)
        if not known or not isinstance(network, AutoregressiveNetwork):
            raise ValueError(
                "AutoregressiveLikelihood takes (likelihood, network), such as "
                "BernoulliLikelihood(event_dim=3) and a PixelCNN, but got "
                f"{type(likelihood).__name__} and {type(network).__name__}."
            )

        if likelihood.event_dim != len(network.event_shape):
            raise ValueError(
                f"The likelihood has event_dim={likelihood.event_dim}, but the "
                f"network's data have shape {network.event_shape}; pass "
                f"event_dim={len(network.event_shape)}?"
            )

        if likelihood.num_params != network.num_params:
            raise ValueError(
                f"{type(likelihood).__name__} takes {likelihood.num_params} numbers "
                f"per value, but the network has num_params={network.num_params}; pass "
                f"num_params={likelihood.num_params} to the network?"
            )

        self.likelihood, self.network = likelihood, network
        self.event_shape = network.event_shape
        self.context_shape = network.context_shape

    def forward(self, context: Tensor) -> Autoregressive:
        """The distribution of x given the decoder's output with shape ``(..., *context_shape)``."""
        wanted = self.context_shape
        if context.shape[max(0, context.dim() - len(wanted)) :] != wanted:
            raise ValueError(
                f"The decoder returns {tuple(context.shape)}, but the autoregressive "
                f"network takes {wanted} for each datum, behind the batch; give the "
                "decoder that output shape, or the network that context?"
            )

        one = (self.likelihood.num_params,) + (1,) * (len(self.event_shape) - 1)
        support = self.likelihood(context.new_zeros(one)).support
        return Autoregressive(
            _Conditionals(self),
            context,
            self.event_shape,
            support,
            context_dim=len(wanted),
        )

    def hint(self, value: Tensor) -> str | None:
        """See :meth:`Likelihood.hint`."""
        return self.likelihood.hint(value)

    def read(self, value: Tensor) -> Tensor:
        """x as the network reads it."""
        low, high = self.likelihood.limits
        return 2 * (value - low) / (high - low) - 1


Walk = Iterator[tuple[Tensor, TorchDistribution]]


@dataclass
class _Conditionals:
    """The two ways of evaluation that :class:`Autoregressive` knows."""

    owner: AutoregressiveLikelihood

    def __call__(self, value: Tensor, context: Tensor) -> TorchDistribution:
        x = self.owner.read(value.to(context.dtype))
        return self.owner.likelihood(self.owner.network(x, context))

    def walk(self, value: Tensor, context: Tensor) -> Walk:
        x = torch.zeros_like(value)
        for index, params in self.owner.network.walk(x, context):
            view, read = value, x
            for dim, i in enumerate(index, start=-len(index)):
                view, read = view.narrow(dim, i, 1), read.narrow(dim, i, 1)
            yield view, self.owner.likelihood(params)
            read.copy_(self.owner.read(view))
