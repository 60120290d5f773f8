"""The residual networks of the mutual-posterior-divergence paper: their sizes, and who feeds whom."""

import pytest
import torch
from torch import nn

from pyro_vaes.nn import Chain, NormalHead, ResidualEncoder, ResidualPixelCNN
from pyro_vaes.nn.causal_conv import MaskedConv2d


def test_the_papers_encoder_has_704_thousand_parameters():
    encoder = Chain(ResidualEncoder((1, 28, 28), [32, 64, 64], 512), NormalHead(512, 32))
    assert sum(p.numel() for p in encoder.parameters()) == 703_808


def test_the_papers_decoder_has_505_thousand_parameters_and_sees_15_rows():
    net = ResidualPixelCNN((1, 28, 28), 64, [7, 7, 7, 5, 5, 3, 3], context_channels=4)
    assert max(-row for row, _ in net.receptive_field()) == 15
    convolutions = [m for m in net.modules() if isinstance(m, MaskedConv2d)]
    # the authors store the hidden halves of the masked kernels too, and a gain for each output of the linear layer
    stored = sum(m.mask[..., 0, 0].numel() * m.mask.shape[-1] ** 2 + 2 * len(m.mask) for m in convolutions)
    linear = 32 * 4 * 784 + 2 * 4 * 784
    assert round((stored + linear) / 1e6, 3) == 0.505


def test_each_layer_gets_what_the_third_before_it_made():
    """With blocks that only activate, and an activation that doubles, the sums can be counted."""

    class Double(nn.Module):
        def forward(self, h):
            return 2 * h

    net = ResidualPixelCNN((1, 3, 3), 2, [3] * 5, activation=Double, weight_norm=False).double()
    for block in net.blocks:
        for p in [*block.before.parameters(), *block.conv.parameters(), *block.after.parameters()]:
            nn.init.zeros_(p)
    h = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    layers = [2 * h]
    for layer in range(1, 6):
        skipped = 2 * layers[layer - 3] if layer >= 3 else 0.0
        layers.append((2 if layer < 5 else 1) * (layers[-1] + skipped))
    torch.testing.assert_close(net._after_first(h), net.output(layers[-1]))


def test_an_encoder_takes_odd_sizes_and_its_skip_counts():
    encoder = ResidualEncoder((2, 7, 9), [4, 6], 5)
    x = torch.randn(3, 2, 7, 9)
    assert encoder(x).shape == (3, 5)
    block = encoder[0]
    nn.init.zeros_(block.body[2].bias)
    block.body[2].parametrizations.weight.original0.data.zero_()  # the gain of the last convolution of the body
    torch.testing.assert_close(block(x), nn.functional.elu(block.skip(x)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((1, 4, 4), 8, [3, 3]), "at least three odd numbers, but got \\[3, 3\\]"),
        (((1, 4, 4), 8, [3, 4, 3]), "odd numbers, but got \\[3, 4, 3\\]"),
        (((3, 4, 4), 8, [3, 3, 3]), "a multiple of the image's 3, but got 8"),
    ],
)
def test_wrong_sizes_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        ResidualPixelCNN(*arguments)
