"""Multilayer perceptrons, chains, and small modules for covariates."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn
from torch.distributions.distribution import Distribution

from pyro_vaes.ops import assert_in_graph, is_capturing

Activation = Callable[[], nn.Module]
"""The constructor of an activation."""


def concatenate(inputs: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Concatenate tensors with shapes ``(..., F_i)`` into ``(..., sum F_i)``; their leading dimensions broadcast.

    Arguments:
        inputs: The tensors.
        dim: Where the F_i stand, negative: -3 for images ``(..., C_i, H, W)``.
    """
    if len(inputs) == 1:
        return inputs[0]
    batch_shape = broadcast_shape(*(i.shape[:dim] for i in inputs))
    return torch.cat([i.expand(batch_shape + i.shape[dim:]) for i in inputs], dim=dim)


class MLP(nn.Sequential):
    """A multilayer perceptron ``in -> hidden... -> out``; the output has no activation.

    Several inputs are concatenated, so ``MLP(784 + 10, ...)`` takes ``(x, one_hot)``.

    Arguments:
        in_features: Number of input features (the sum over all inputs).
        hidden: Widths of the hidden layers; empty for a linear map.
        out_features: Number of output features.
        activation: Constructor of the activation behind each hidden layer.
        bias: Whether the linear maps have a bias.
        activate_output: Whether the output is activated too, as for a trunk with heads behind it.

    Example:
        >>> MLP(64, [32], 8)(torch.zeros(5, 64)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Activation = nn.ReLU,
        bias: bool = True,
        activate_output: bool = False,
    ) -> None:
        if isinstance(hidden, int):
            raise ValueError(f"hidden is {hidden}; a list of widths is wanted: [{hidden}].")
        widths = [in_features, *hidden, out_features]
        if any(not isinstance(w, int) or w < 1 for w in widths):
            raise ValueError(f"An MLP needs positive whole numbers as widths, but got {widths}.")
        super().__init__()
        for i, o in pairwise(widths):
            self.extend([nn.Linear(i, o, bias=bias), activation()])
        if not activate_output:
            del self[-1]
        self.in_features, self.out_features = in_features, out_features

    def forward(self, *inputs: Tensor) -> Tensor:
        x = concatenate(inputs)
        if x.shape[-1] != self.in_features:
            flatten = "flatten images first, or " if any(i.dim() > 2 for i in inputs) else ""
            raise ValueError(
                f"The MLP takes {self.in_features} features, but its inputs have "
                f"{' + '.join(str(i.shape[-1]) for i in inputs)} (shapes {[tuple(i.shape) for i in inputs]}); "
                f"{flatten}give it in_features={x.shape[-1]}?"
            )
        return super().forward(x)


class Chain(nn.Sequential):
    """Modules applied one after the other, of which the first may take several inputs.

    Example:
        >>> from pyro_vaes.nn import NormalHead
        >>> Chain(MLP(64 + 10, [32], 32), NormalHead(32, 8))(torch.zeros(5, 64), torch.zeros(5, 10)).event_shape
        torch.Size([8])
    """

    def forward(self, *inputs: Tensor) -> Tensor | Distribution:
        first, *rest = self
        output = first(*inputs)
        for module in rest:
            output = module(output)
        return output


class OneHot(nn.Module):
    """Class labels 0..num_classes-1 with shape ``(...)`` as float indicators with shape ``(..., num_classes)``.

    Raises:
        ValueError: A label is out of range (looked at on the CPU only, where looking costs nothing).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.eye = nn.Buffer(torch.eye(num_classes), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        num_classes = self.eye.shape[0]
        if labels.dtype.is_floating_point:
            raise ValueError(f"Class labels are whole numbers, but the covariate has dtype {labels.dtype}.")

        # on other devices, looking would wait for them
        if is_capturing():
            known = (labels >= 0) & (labels < num_classes)
            assert_in_graph(known, f"Labels must lie in 0..{num_classes - 1}.")
        elif labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"Labels run from {labels.min().item()} to {labels.max().item()}, but this model has {num_classes} "
                f"classes, 0..{num_classes - 1}. Relabel them, or build the model with more classes?"
            )

        return self.eye[labels]
