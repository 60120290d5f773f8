"""What networks with an order have in common: the parameters of element i see the elements before i alone."""

import abc
from collections.abc import Iterator

from torch import Tensor, nn

Elements = Iterator[tuple[tuple[int, ...], Tensor]]
"""The index of one element in the event, and its parameters; one element after the other."""


class AutoregressiveNetwork(nn.Module, abc.ABC):
    """A network ``(x, context) -> parameters`` in which those of element i depend on the context and on x_<i.

    Attributes:
        event_shape: Shape of x.
        context_shape: Shape of the context of one datum; its first dimension is 0 where there is none.
        num_params: Numbers P per element. They are laid out as likelihoods read them: ``(..., P*D)`` as
            ``(..., P, D)``, or ``(..., P*C, H, W)`` as ``(..., P, C, H, W)``.
    """

    event_shape: tuple[int, ...]
    context_shape: tuple[int, ...]
    num_params: int

    @abc.abstractmethod
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """The parameters of all elements in one pass; leading dimensions of x and context broadcast."""

    @abc.abstractmethod
    def walk(self, x: Tensor, context: Tensor) -> Elements:
        """The parameters of one element after the other, in the order of the network.

        The caller writes element i into ``x`` before it asks for the next one; later elements are not looked at.

        Arguments:
            x: Contiguous, with shape ``(..., *event_shape)``.
            context: With shape ``(..., *context_shape)`` and the same leading dimensions.

        Yields:
            The element's index in the event, and its parameters with shape ``(..., P)`` or ``(..., P, 1, 1)``.
        """
