"""Autoregressive networks: who sees whom, exactly; two ways of evaluation; T27 and T28 of the lossy auto-encoder."""

import itertools

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from pyro_vaes.nn import (
    MADE,
    PixelCNN,
    Reach,
    ResidualPixelCNN,
    gated_block,
    pixel_cnn_layers,
    pixel_cnn_window,
    plain_block,
    residual_block,
)
from pyro_vaes.nn.causal_conv import MaskedConv2d

NETWORKS = {
    "stack": lambda **o: PixelCNN((1, 5, 6), 6, pixel_cnn_layers(2), context_channels=2, **o),
    "tied, pointwise": lambda **o: PixelCNN(
        (1, 5, 6), 6, pixel_cnn_layers(3), context_channels=2, num_pointwise=2, tied=True, **o
    ),
    "window": lambda **o: PixelCNN((1, 5, 6), 6, pixel_cnn_window(4, 2), context_channels=2, num_pointwise=1, **o),
    "mixed": lambda **o: PixelCNN((1, 5, 6), 6, [*pixel_cnn_layers(1, 5), Reach(0, 2, 0)], 2, context_channels=2, **o),
    "colour": lambda **o: PixelCNN((3, 4, 4), 7, pixel_cnn_layers(2), 2, context_channels=2, **o),
    "residual": lambda block: ResidualPixelCNN((2, 4, 4), 8, [3, 3, 3, 3], 2, context_channels=2),  # its own block
}
BLOCKS = [residual_block, gated_block, plain_block]


def dense(net):
    """The Jacobian of all parameters in x, (P, C, H, W) + (C, H, W): the sum of the moduli at three points."""
    total = 0.0
    for _ in range(3):
        x = torch.randn(net.event_shape, dtype=torch.float64)
        context = torch.randn(net.context_shape, dtype=torch.float64)
        rows = jacobian(lambda x, context=context: net(x, context), x)
        total = total + rows.unflatten(0, (net.num_params, -1)).abs()
    return total


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_T27_and_T28_the_jacobian_vanishes_exactly_outside_the_receptive_field(make, block):
    net = make(block=block).double()
    channels, height, width = net.event_shape
    field, found = net.receptive_field(), dense(net) != 0
    pixels = list(itertools.product(range(height), range(width), range(channels)))
    for (r, c, k), (s, d, j) in itertools.product(pixels, pixels):
        earlier_channel = (r, c) == (s, d) and j < k
        wanted = (s - r, d - c) in field or earlier_channel
        assert (found[:, k, r, c, j, s, d] == wanted).all(), f"({r}, {c}, {k}) against ({s}, {d}, {j})"
        if (s, d, j) >= (r, c, k):
            assert not wanted  # T27: nothing at or behind the element in raster order


@pytest.mark.parametrize("block", BLOCKS)
def test_T27_every_element_sees_the_context_at_its_own_pixel(block):
    for make in NETWORKS.values():
        net = make(block=block).double()
        x = torch.randn(net.event_shape, dtype=torch.float64)
        rows = jacobian(lambda f, net=net, x=x: net(x, f), torch.randn(net.context_shape, dtype=torch.float64))
        height, width = net.event_shape[1:]
        for r, c in itertools.product(range(height), range(width)):
            assert (rows[:, r, c, :, r, c] != 0).all()


@pytest.mark.parametrize(("layers", "count", "context"), [(1, 4, 9), (3, 21, 32), (6, 69, 89)])
def test_T28_stacks_of_3x3_see_4_21_and_69_pixels_and_the_context_at_9_32_and_89(layers, count, context):
    net = PixelCNN((1, 9, 15), 4, pixel_cnn_layers(layers), context_channels=1).double()
    x = torch.randn(net.event_shape, dtype=torch.float64, requires_grad=True)
    features = torch.randn(net.context_shape, dtype=torch.float64, requires_grad=True)
    by_x, by_context = torch.autograd.grad(net(x, features)[0, 7, 7], [x, features])
    assert (by_x != 0).sum() == len(net.receptive_field()) == count == layers + 3 * layers * (layers + 1) // 2
    assert (by_context != 0).sum() == context
    rows, columns = ((by_context[0] != 0).nonzero() - 7).unbind(
        -1
    )  # all around in the first layer, causal in the others
    assert (rows.min(), rows.max()) == (-layers, 1) and (columns.min(), columns.max()) == (-layers, layers)
    for r in range(layers + 1):  # row -r: from -n to +r, and n pixels to the left in the pixel's own row
        columns = (by_x[0, 7 - r] != 0).nonzero().flatten() - 7
        assert columns.tolist() == list(range(-layers, r + 1 if r else 0))


@pytest.mark.parametrize(
    ("size", "left", "right"),
    [((4, 2), 2, 1), ((5, 3), 2, 2), ((7, 4), 3, 3), ((1, 2), 0, 0), ((2, 1), 1, 0), ((8, 0), 4, 0)],
)
def test_T28_windows(size, left, right):
    width, height = size
    net = PixelCNN((1, 6, 11), 4, pixel_cnn_window(width, height), context_channels=1, num_pointwise=2).double()
    block = set(itertools.product(range(-height, 0), range(-left, right + 1)))  # `width` columns, `height` rows
    beside = {(0, -c) for c in range(1, left + 1)}  # ceil((A - 1) / 2)
    assert net.receptive_field() == block | beside and left == -(-(width - 1) // 2)
    assert len(block) == width * height
    x = torch.randn(net.event_shape, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x, x.new_zeros(net.context_shape))[0, 5, 5], x)
    assert {(r - 5, c - 5) for _, r, c in (grad != 0).nonzero().tolist()} == block | beside


def test_T27_made_is_strictly_triangular_whatever_its_widths():
    for dim, hidden, context in [(1, [3], 0), (2, [4], 0), (6, [16], 0), (6, [9, 7], 3), (6, [3, 3], 2), (1, [4], 2)]:
        net = MADE(dim, hidden, 2, context_features=context, activation=nn.Tanh).double()
        rows, by_context = jacobian(net, tuple(torch.randn(n, dtype=torch.float64) for n in (dim, context)))
        found = rows.unflatten(0, (2, dim)) != 0
        below = torch.ones(dim, dim, dtype=torch.bool).tril(-1)
        assert not (found & ~below).any()
        if min(hidden) >= dim:  # wide enough to tell all prefixes apart
            assert (found == below).all()
        assert (by_context != 0).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_pixel_by_pixel_equals_one_parallel_pass(make, block):
    net = make(block=block).double()
    x = torch.randn(2, 3, *net.event_shape, dtype=torch.float64)
    context = torch.randn(2, 3, *net.context_shape, dtype=torch.float64)
    given = torch.full_like(x, 7.0)  # what has not been drawn yet is not looked at
    seen = torch.zeros(2, 3, net.num_params, *net.event_shape, dtype=torch.float64)
    for (k, r, c), params in net.walk(given, context):
        seen[:, :, :, k, r, c] = params[..., 0, 0]
        given[:, :, k, r, c] = x[:, :, k, r, c]
    torch.testing.assert_close(seen.flatten(2, 3), net(x, context), rtol=1e-12, atol=1e-12)


def test_leading_dimensions_broadcast():
    net = PixelCNN((1, 4, 4), 5, pixel_cnn_layers(2), context_channels=2).double()
    x, context = torch.randn(4, 1, 4, 4).double(), torch.randn(3, 4, 2, 4, 4).double()
    wide = net(x, context)
    assert wide.shape == (3, 4, 1, 4, 4)
    for i, j in itertools.product(range(3), range(4)):
        torch.testing.assert_close(wide[i, j], net(x[j], context[i, j]))
    alone = PixelCNN((1, 4, 4), 5, pixel_cnn_layers(2)).double()
    assert alone(x, x.new_zeros(3, 4, 0, 4, 4)).shape == (4, 1, 4, 4)


def test_tied_layers_are_one_layer():
    tied, free = (PixelCNN((1, 5, 5), 6, pixel_cnn_layers(6), tied=t, num_pointwise=2) for t in (True, False))
    assert sum(p.numel() for p in tied.parameters()) < sum(p.numel() for p in free.parameters())
    assert len(tied.blocks) == 1 + 2 and len(free.blocks) == 5 + 2
    assert len(tied.state_dict()) == len({t.data_ptr() for t in tied.state_dict().values()})


def test_weight_norm_starts_at_the_weights_and_scales_by_the_gain():
    conv = MaskedConv2d(torch.ones(3, 2, 2, 2)).double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias))
    before = conv(x) - conv.bias[:, None, None]
    with torch.no_grad():
        conv.gain.mul_(2.0)
        conv.weight.mul_(5.0)  # only its direction counts
    torch.testing.assert_close(conv(x) - conv.bias[:, None, None], 2 * before)


def test_a_layer_that_sees_nothing_has_finite_gradients():
    net = PixelCNN((1, 3, 3), 4, [Reach(0, 0, 0)], context_channels=1)
    net(torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.receptive_field() == set()


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="channels=0"):
        PixelCNN((1, 4, 4), 0, pixel_cnn_layers(1))
    with pytest.raises(ValueError, match="at least as many hidden channels"):
        PixelCNN((3, 4, 4), 2, pixel_cnn_layers(1))
    with pytest.raises(ValueError, match="odd context_size"):
        PixelCNN((1, 4, 4), 2, pixel_cnn_layers(1), context_channels=1, context_size=2)
    with pytest.raises(ValueError, match="one reach behind the first"):
        PixelCNN((1, 4, 4), 2, [*pixel_cnn_layers(2), Reach(0, 1, 0)], tied=True)
    with pytest.raises(ValueError, match="odd kernel_size"):
        pixel_cnn_layers(2, 4)
    with pytest.raises(ValueError, match="width >= 1"):
        pixel_cnn_window(0, 2)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        MADE(3, [])
    with pytest.raises(ValueError, match="dim=0"):
        MADE(0, [3])
