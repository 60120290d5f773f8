r"""MADE: a multilayer perceptron whose outputs for element i see the elements before i alone.

    W[k, l] = 0 unless m(k) >= m(l) between hidden units (and from inputs), m(k) > m(l) towards outputs

with the degrees m = 1..D of the inputs and outputs in their natural order. The original draws orders and degrees of
hidden units at random; here both are fixed, so that a checkpoint needs no seed.

References:
    | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
    | https://arxiv.org/abs/1502.03509
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .autoregressive import AutoregressiveNetwork, Elements
from .mlp import Activation, concatenate
from .sizes import check_sizes


class MaskedLinear(nn.Linear):
    """A linear map of which only the weights in a mask count.

    Arguments:
        mask: Ones and zeros, shape ``(out_features, in_features)``.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.mask = nn.Buffer(mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.mask, self.bias)


class MADE(AutoregressiveNetwork):
    """An autoregressive multilayer perceptron over vectors with D elements, in their natural order.

    The hidden units' degrees are spread evenly. A layer narrower than D - 1 cannot tell all prefixes apart: element i
    then sees the longest prefix that a hidden unit stands for rather than all elements before it.

    Arguments:
        dim: D.
        hidden: Widths of the hidden layers, at least one.
        num_params: Numbers P per element.
        context_features: Width F of the context; 0 for none.
        activation: Constructor of the activation behind each hidden layer.

    Raises:
        ValueError: A size is not a positive whole number, or there is no hidden layer.

    Example:
        >>> net = MADE(4, [32], num_params=2)
        >>> x = torch.randn(5, 4)
        >>> net(x).shape
        torch.Size([5, 8])
        >>> jacobian = torch.autograd.functional.jacobian(lambda x: net(x)[:4], x[0])  # of the first P*D/2 outputs
        >>> bool((jacobian.triu() == 0).all())
        True
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        num_params: int = 1,
        *,
        context_features: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        check_sizes(self, dim=dim, num_params=num_params)
        check_sizes(self, least=0, context_features=context_features)
        check_sizes(self, **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        if not hidden:
            raise ValueError("MADE needs at least one hidden layer; hidden=[64]?")

        self.event_shape, self.context_shape, self.num_params = (dim,), (context_features,), num_params

        lowest = 0 if context_features or dim == 1 else 1  # degree 0: units that see the context alone
        degrees = [torch.cat([torch.arange(1, dim + 1), torch.zeros(context_features, dtype=torch.long)])]
        for width in hidden:
            degrees.append(lowest + torch.arange(width) * (dim - lowest) // width)

        self.layers = nn.Sequential()
        for below, above in pairwise(degrees):
            masked = MaskedLinear(above.unsqueeze(-1) >= below)
            self.layers.extend([masked, activation()])

        outputs = torch.arange(1, dim + 1).repeat(num_params)  # laid out as (P, D)
        self.layers.append(MaskedLinear(outputs.unsqueeze(-1) > degrees[-1]))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(x if context is None else concatenate([x, context]))

    def walk(self, x: Tensor, context: Tensor) -> Elements:
        for i in range(x.shape[-1]):
            yield (i,), self(x, context).unflatten(-1, (self.num_params, -1))[..., i]
