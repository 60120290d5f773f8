"""The ladder's networks: the paper's tables, merges, stacks of layers over leading dimensions."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from pyro_vaes.nn import (
    Concatenate,
    GatedAdd,
    SigmoidNormalHead,
    large_ladder,
    medium_ladder,
    mlp_ladder,
    small_ladder,
)
from pyro_vaes.nn.conv import same_conv, same_deconv
from pyro_vaes.nn.layer_builder import LayerBuilder


def run(networks, x, particles=()):
    """Shapes of h_1 .., of t_1 .. and of the parameters of x."""
    path = [x]
    for encoder in networks.encoders:
        path.append(encoder(path[-1]))
    z = [rung(h).rsample(particles) for rung, h in zip(networks.rungs, path, strict=True)]
    ts = [networks.decoders[-1](z[-1])]
    for decoder, merge, v in zip(networks.decoders[-2::-1], networks.merges[::-1], z[-2::-1], strict=True):
        ts.append(decoder(merge(ts[-1], v)))
    return path[1:], ts[::-1]


CASES = {
    "small": (small_ladder, (1, 28, 28), [(32,), (32,)]),
    "small odd": (small_ladder, (2, 5, 7), [(32,), (32,)]),
    "medium": (medium_ladder, (3, 32, 32), [(4, 16, 16), (6, 8, 8), (8, 4, 4)]),
    "medium odd": (medium_ladder, (1, 9, 11), [(4, 5, 6), (6, 3, 3), (8, 2, 2)]),
    "large": (large_ladder, (3, 64, 64), [(4, 32, 32), (8, 8, 8), (10, 4, 4)]),
    "large odd": (large_ladder, (1, 33, 17), [(4, 17, 9), (8, 5, 3), (10, 3, 2)]),
}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_settings_of_the_paper_on_any_image(case, batch_norm):
    setting, shape, maps = CASES[case]
    channels = {small_ladder: [4, 6], medium_ladder: [4, 6, 8], large_ladder: [4, 6, 8, 10]}[setting]
    networks = setting(shape, channels=channels, width=32, batch_norm=batch_norm)
    path, ts = run(networks, torch.rand(3, *shape), particles=(2,))
    assert [h.shape for h in path] == [(3, *m) for m in maps]
    assert ts[0].shape == (2, 3, *shape) and (ts[0] > 0).all() and (ts[0] < 1).all()
    inner = ts[1:] if setting is small_ladder else ts[1:3]
    wanted = maps if setting is small_ladder else maps[:2]
    assert [t.shape for t in inner] == [(2, 3, *m) for m in wanted], "decoders return what the encoders did"
    logits = setting(shape, channels=channels, width=32, out_channels=2 * shape[0], output=nn.Identity)
    out = run(logits, torch.rand(3, *shape))[1][0]
    assert out.shape == (3, 2 * shape[0], *shape[1:]) and (out < 0).any()


def widths(network):
    """(kind, in, out, stride) of the layers with weights."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    return [
        ("fc", m.in_features, m.out_features)
        if isinstance(m, nn.Linear)
        else (type(m).__name__, m.in_channels, m.out_channels, m.stride[0])
        for m in layers
    ]


def test_the_small_setting_is_the_papers_table():
    networks, flat = small_ladder(), 7 * 7 * 128
    pixels = [("Conv2d", 1, 64, 2), ("Conv2d", 64, 128, 2)]
    fc, head = ("fc", 1024, 1024), [("fc", 1024, 2)] * 2
    assert [widths(n) for n in networks.encoders] == [[*pixels, ("fc", flat, 1024)], [fc] * 3]
    assert [widths(n) for n in networks.rungs] == [[*pixels, *[("fc", flat, 2)] * 2], [fc, fc, *head], [fc, fc, *head]]
    assert [widths(n) for n in networks.merges] == [[("fc", 2, 1024)]] * 2
    start = [("fc", 1024, flat), ("ConvTranspose2d", 128, 64, 2), ("ConvTranspose2d", 64, 1, 2)]
    assert [widths(n) for n in networks.decoders] == [start, [fc] * 3, [("fc", 2, 1024), fc, fc]]
    assert all(isinstance(m, GatedAdd) and m.gate.shape == (1024,) and (m.gate == 0.1).all() for m in networks.merges)


def test_the_medium_setting_is_the_papers_table():
    networks, up = medium_ladder(), "ConvTranspose2d"
    scale = [[("Conv2d", i, o, 2), ("Conv2d", o, o, 1)] for i, o in ((3, 64), (64, 128), (128, 256))]
    assert [widths(n) for n in networks.encoders] == scale
    assert [widths(n)[:2] for n in networks.rungs[:3]] == scale
    assert widths(networks.rungs[3]) == [("fc", 4096, 1024), ("fc", 1024, 1024), *[("fc", 1024, 10)] * 2]
    assert [widths(n) for n in networks.merges] == [[("fc", 5, 16 * 16 * 64)], [("fc", 5, 8 * 8 * 128)], []]
    assert [widths(n) for n in networks.decoders] == [
        [(up, 128, 64, 2), (up, 64, 3, 1)],
        [(up, 256, 128, 2), (up, 128, 64, 1)],
        [("fc", 1029, 4096), (up, 256, 256, 2), (up, 256, 128, 1)],
        [("fc", 10, 1024), ("fc", 1024, 1024), ("fc", 1024, 1024)],
    ]


def test_the_large_setting_is_the_papers_table():
    networks, up = large_ladder(width=64), "ConvTranspose2d"
    blocks = [
        [("Conv2d", 3, 64, 2), ("Conv2d", 64, 64, 1)],
        [("Conv2d", 64, 128, 2), ("Conv2d", 128, 128, 1), ("Conv2d", 128, 256, 2)],
        [("Conv2d", 256, 256, 1), ("Conv2d", 256, 512, 2), ("Conv2d", 512, 512, 1)],
    ]
    assert [widths(n) for n in networks.encoders] == blocks
    assert [widths(n)[:-2] for n in networks.rungs[:3]] == blocks
    assert widths(networks.rungs[3])[:2] == [("fc", 8192, 64), ("fc", 64, 64)]
    assert [widths(n) for n in networks.merges] == [[("fc", 10, n)] for n in (32 * 32 * 64, 8 * 8 * 256, 4 * 4 * 512)]
    assert [widths(n) for n in networks.decoders] == [
        [(up, 128, 64, 2), (up, 64, 3, 1)],
        [(up, 512, 128, 2), (up, 128, 128, 1), (up, 128, 64, 2)],
        [(up, 1024, 512, 1), (up, 512, 256, 2), (up, 256, 256, 1)],
        [("fc", 10, 64), ("fc", 64, 64), ("fc", 64, 8192)],
    ]
    with torch.no_grad():
        x = torch.rand(4, 3, 64, 64)
        means = [rung(h).mean for rung, h in zip(networks.rungs, [x, *run(networks, x)[0]], strict=True)]
    assert all((m < 0).any() for m in means), "no ReLU on the heads"


def test_weights_start_as_the_authors():
    network = LayerBuilder((1, 28, 28), batch_norm=True).conv(64).fc(256).linear(128).build()
    conv, fc, linear = (m for m in network if isinstance(m, nn.Conv2d | nn.Linear))
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert fc.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert linear.weight.std().item() == pytest.approx((2 / (256 + 128)) ** 0.5, rel=0.02) and (linear.bias == 0).all()
    assert conv.bias is None and fc.bias is None
    norms = [m for m in network if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [(m.eps, m.weight, m.bias.shape) for m in norms] == [(1e-3, None, (64,)), (1e-3, None, (256,))]


def test_normalised_layers_learn_a_shift_and_evaluate_each_datum_by_itself():
    network = LayerBuilder((6,), batch_norm=True).fc(5).linear(2).build()
    x = torch.randn(40, 6)
    network(x).sum().backward()
    assert network[1].bias.grad.abs().max() > 0
    network.eval()
    torch.testing.assert_close(network(x)[:3], network(x[:3]))
    with torch.no_grad():
        before = network(x)
        network[1].bias += 1.0
        assert (network(x) - before).abs().max() > 0.1


@pytest.mark.parametrize(("size", "out"), [((6, 8), (3, 4)), ((7, 5), (4, 3))])
def test_padding_is_tensorflows_same(size, out):
    """Stride 2: symmetric for even sizes, one more at the end for odd ones; stride 1: (1, 2)."""
    for stride, wanted in ((2, out), (1, size)):
        layers = nn.Sequential(*same_conv(1, 1, size, stride=stride))
        x = torch.randn(2, 1, *size)
        assert layers(x).shape[2:] == wanted
        ends = [n % 2 + 1 if stride == 2 else 2 for n in size]
        padded = nn.functional.pad(x, (1, ends[1], 1, ends[0]))
        torch.testing.assert_close(layers(x), conv2d(padded, layers[1].weight, layers[1].bias, stride=stride))
        # the transposed layer is the adjoint: <A x, y> = <x, A* y>
        layers[1].bias.data.zero_()
        back = nn.Sequential(*same_deconv(1, 1, size, stride=stride))
        back[0].load_state_dict({"weight": layers[1].weight.data, "bias": torch.zeros(1)})
        y = torch.randn(2, 1, *wanted)
        torch.testing.assert_close((layers(x) * y).sum(), (x * back(y)).sum(), rtol=1e-4, atol=1e-4)


def test_stacks_keep_leading_dimensions_and_refuse_other_data():
    network = (
        LayerBuilder((1, 6, 6), batch_norm=False)
        .conv(3)
        .feature_map((2, 3, 3))
        .deconv(2, (6, 6))
        .image((1, 6, 6))
        .build()
    )
    x = torch.rand(4, 5, 1, 6, 6)
    torch.testing.assert_close(network(x)[1, 2], network(x[1, 2]))
    with pytest.raises(ValueError, match=r"data of shape \(1, 6, 6\).* got a tensor of shape \(5, 36\).*flatten=False"):
        network(torch.rand(5, 36))


def test_merges():
    above, z = torch.randn(5, 4), torch.randn(3, 5, 2)
    network = nn.Linear(2, 4)
    gated, joined = GatedAdd(network, (4,)), Concatenate(network, (4,))
    torch.testing.assert_close(gated(above, z), above + 0.1 * network(z))
    torch.testing.assert_close(joined(above, z), torch.cat([above.expand(3, 5, 4), network(z)], -1))
    assert (gated.out_shape, joined.out_shape) == ((4,), (8,))
    image = Concatenate(nn.Unflatten(-1, (2, 1, 1)), (3, 1, 1), injected=2)
    assert image(torch.randn(5, 3, 1, 1), z).shape == (3, 5, 5, 1, 1) and image.out_shape == (5, 1, 1)
    with pytest.raises(ValueError, match=r"what comes from above has shape \(5, 3\), but \(4,\) is wanted"):
        gated(torch.randn(5, 3), z)
    with pytest.raises(ValueError, match=r"what the network injects has shape \(3, 5, 1\)"):
        GatedAdd(nn.Linear(2, 1), (4,))(above, z)


def test_the_sigmoid_head_is_bounded():
    head = SigmoidNormalHead(4, 3)
    scale = head(1e3 * torch.randn(500, 4)).base_dist.scale
    assert scale.min() >= 1e-3 and scale.max() <= 1.001 and scale.max() > 1.0
    assert head(torch.zeros(1, 4)).base_dist.scale.unique().item() == pytest.approx(0.501)
    with pytest.raises(ValueError, match="min_scale"):
        SigmoidNormalHead(4, 3, min_scale=0.0)


@pytest.mark.parametrize("merge", [GatedAdd, Concatenate])
def test_mlp_ladders_have_any_number_of_rungs(merge):
    for dims in ([3], [1, 4], [2, 2, 2, 2]):
        networks = mlp_ladder(9, dims, width=7, merge=merge, out_features=18)
        path, ts = run(networks, torch.randn(5, 9), particles=(2,))
        assert [h.shape for h in path] == [(5, 7)] * (len(dims) - 1)
        assert [t.shape for t in ts] == [(2, 5, 18), *[(2, 5, 7)] * (len(dims) - 1)]


def test_settings_have_a_fixed_number_of_rungs():
    with pytest.raises(ValueError, match=r"3 latent_dims, but got \[2, 2\]; .* mlp_ladder"):
        small_ladder(latent_dims=[2, 2])
    with pytest.raises(ValueError, match="4 channels"):
        large_ladder(channels=[2, 2])
