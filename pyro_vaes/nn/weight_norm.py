r"""Weight normalisation of whole networks, with lengths and biases that start from a batch of data.

    y = g v·x / ||v|| + b,    g <- 1 / sd[v·x / ||v||],    b <- -mean[v·x / ||v||] / sd[v·x / ||v||]

over the batch (and the positions of a convolution), layer after layer, so that each output has mean 0 and variance 1
when training starts. Nothing passes between the data of a batch afterwards, as it does with batch normalisation, which
would tell an autoregressive decoder what lies ahead.

References:
    | Weight Normalization: A Simple Reparameterization to Accelerate Training (Salimans & Kingma, 2016)
    | https://arxiv.org/abs/1602.07868
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .causal_conv import MaskedConv2d

M = TypeVar("M", bound=nn.Module)
SMALLEST = 1e-6  # below it an output is constant, and there is no scale to bring to 1


def weight_norm(network: M) -> M:
    """Give every linear and (transposed) 2-D convolutional layer a length for each output, in place.

    Subclasses, such as the masked layers of MADE, are left alone; a :class:`PixelCNN` has its own ``weight_norm``.

    Example:
        >>> [n for n, _ in weight_norm(nn.Sequential(nn.Linear(3, 2))).named_parameters()]
        ['0.bias', '0.parametrizations.weight.original0', '0.parametrizations.weight.original1']
    """
    for layer in network.modules():
        if type(layer) in (nn.Linear, nn.Conv2d):
            parametrizations.weight_norm(layer, dim=0)
        elif type(layer) is nn.ConvTranspose2d:  # its weight has the outputs second
            parametrizations.weight_norm(layer, dim=1)
    return network


def initialise_weight_norm(network: nn.Module, *batch: Tensor, call: Callable[..., object] | None = None) -> None:
    """Set lengths and biases of all weight-normalised layers such that their outputs on a batch have mean 0, sd 1.

    A layer that is used several times is set at its first use; an output that is constant on the batch keeps its
    length; a layer without bias is scaled alone. Layers that the call does not reach keep what they have.

    Arguments:
        network: Holds the layers; modules with :func:`weight_norm` or torch's parametrisation of that name, and
            masked convolutions with weight normalisation.
        batch: What it is called on, a hundred data or so.
        call: How it is called, if it is no function of the batch: ``lambda x: Trace_ELBO().loss(vae.model, vae.guide,
            x)`` for the networks of a model and guide.

    Raises:
        ValueError: The call reaches no weight-normalised layer.

    Example:
        >>> network = weight_norm(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
        >>> x = 7 + torch.randn(100, 5)
        >>> initialise_weight_norm(network, x)
        >>> network(x).mean(0).abs().max().item() < 1e-5
        True
    """
    seen: set[nn.Module] = set()

    def start(layer: nn.Module, _: object, output: Tensor) -> Tensor | None:
        if layer in seen:
            return None
        seen.add(layer)

        channel = output.dim() - (1 if isinstance(layer, nn.Linear) else 3)
        others = [d for d in range(output.dim()) if d != channel]
        mean = output.mean(others, keepdim=True)
        sd = output.std(others, correction=0, keepdim=True)

        constant = sd < SMALLEST
        mean, sd = mean.where(~constant, 0.0), sd.where(~constant, 1.0)

        gain, bias = gains[layer], layer.bias
        gain.div_(sd.reshape(gain.shape))

        if not isinstance(bias, Tensor):
            return output / sd
        bias.sub_(mean.flatten()).div_(sd.flatten())
        return (output - mean) / sd

    gains = {m: gain for m in network.modules() if (gain := _gain(m)) is not None}
    hooks = [layer.register_forward_hook(start) for layer in gains]
    try:
        with torch.no_grad():
            (call or network)(*batch)
    finally:
        for hook in hooks:
            hook.remove()

    if not seen:
        raise ValueError(
            f"The call reaches no weight-normalised layer ({len(gains)} in {type(network).__name__}). Apply "
            "weight_norm(network) first, or pass call= if the network is used by another function?"
        )


def _gain(layer: nn.Module) -> Tensor | None:
    """The lengths, one for each output, of a weight-normalised layer."""
    if isinstance(layer, MaskedConv2d):
        return layer.gain
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        return None
    parts = dict(layer.named_parameters())  # of torch's parametrisations only this one has two parts
    return parts.get("parametrizations.weight.original0") if "parametrizations.weight.original1" in parts else None
