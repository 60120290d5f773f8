"""Where the weights of networks in the style of TensorFlow and Keras start."""

from torch import nn


def glorot(network: nn.Module) -> None:
    """Start all convolutions and linear maps from Glorot's uniform weights, with biases at 0 (Keras's defaults)."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
