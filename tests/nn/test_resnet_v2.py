"""Residual networks and the patch discriminator: the published sizes, and what frozen batch norm means."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from pyro_vaes.nn import LogVarianceHead, PatchDiscriminator, ResNetV2Decoder, ResNetV2Encoder
from pyro_vaes.nn.resnet_v2 import FrozenBatchNorm


def size(network: nn.Module) -> tuple[int, int]:
    """Numbers in a network, moving statistics included, and these alone."""
    statistics = sum(b.numel() for name, b in network.named_buffers() if not name.endswith("num_batches_tracked"))
    return sum(p.numel() for p in network.parameters()) + statistics, statistics


def networks(image_shape, latent_dim, filters, **options):
    encoder = ResNetV2Encoder(image_shape, latent_dim, filters=filters, **options)
    decoder = ResNetV2Decoder(latent_dim, image_shape, filters=filters, **options)
    sampler = LogVarianceHead(2 * latent_dim, latent_dim, event_dim=3)
    halves = (filters, filters, filters, filters // 2, filters // 2)
    return encoder, decoder, sampler, PatchDiscriminator(image_shape, halves, **options)


@pytest.mark.parametrize(
    ("image_shape", "latent_dim", "filters", "counts", "code", "logits"),
    [
        (
            (3, 256, 256),
            512,
            128,
            [(5_882_944, 15_360), (4_049_522, 8_966), (1_049_600, 0), (412_101, 1_026)],
            (64, 4, 4),
            (1, 32, 32),
        ),
        (
            (1, 64, 64),
            128,
            64,
            [(972_944, None), (594_962, None), (65_792, 0), (103_525, 514)],
            (16, 4, 4),
            (1, 8, 8),
        ),
    ],
)
def test_R6_sizes_and_shapes(image_shape, latent_dim, filters, counts, code, logits):
    with torch.device("meta"):  # shapes without the arithmetic
        parts = networks(image_shape, latent_dim, filters)
        encoder, decoder, sampler, discriminator = parts
        for part, (number, statistics) in zip(parts, counts, strict=True):
            assert size(part)[0] == number
            assert statistics is None or size(part)[1] == statistics
        assert sum(size(p)[1] for p in parts[:3]) == {512: 24_326, 128: 8_066}[latent_dim]
        assert sum(size(p)[0] for p in parts[:3]) == {512: 10_982_066, 128: 1_633_698}[latent_dim]
        x = torch.zeros(2, *image_shape)
        assert encoder(x).shape == (2, *code)
        assert sampler.loc(encoder(x).flatten(1)).shape == (2, latent_dim)
        assert decoder(torch.zeros(2, latent_dim)).shape == x.shape
        assert discriminator(x).shape == (2, *logits)


def test_R6_size_of_the_smoke_setting():
    with torch.device("meta"):
        assert sum(size(part)[0] for part in networks((1, 64, 64), 128, 32)[:3]) == 496_610


def test_R6_the_decoder_ends_linearly():
    decoder = ResNetV2Decoder(16, (1, 16, 16), filters=8)
    small = decoder(torch.randn(64, 16))
    nn.init.constant_(decoder.trunk[-1].weight, 7.0)
    nn.init.constant_(decoder.trunk[-1].bias, 0.5)
    large = decoder(100 * torch.randn(64, 16))
    assert large.min() < -1 and large.max() > 1
    assert isinstance(decoder.trunk[-1], nn.Conv2d) and small.abs().max() < large.abs().max()


def test_layers_have_the_published_constants():
    encoder, _, sampler, discriminator = networks((1, 32, 32), 16, 8)
    norms = [m for m in (*encoder.modules(), *discriminator.modules()) if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    assert {m.eps for m in norms} == {1e-3}
    leaky = [m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)]
    assert leaky == [0.3] * 5
    assert [m.stride[0] for m in discriminator.modules() if isinstance(m, nn.Conv2d)] == [2, 2, 2, 1, 1, 1]
    assert not [m for m in discriminator.modules() if isinstance(m, nn.Dropout)]
    for layer in (*encoder.modules(), *sampler.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
            receptive = layer.weight[0, 0].numel()
            bound = (6 / (receptive * sum(layer.weight.shape[:2]))) ** 0.5  # Glorot's
            assert 0.8 * bound < layer.weight.abs().max() <= bound


def test_layer_norm_averages_over_the_pixels_of_each_channel_and_shares_its_scale():
    norm = ResNetV2Encoder((3, 16, 16), 8, filters=4).trunk[0]
    assert norm.weight.shape == (16, 16)
    x = torch.randn(2, 3, 16, 16) * torch.tensor([1.0, 5.0, 9.0]).reshape(3, 1, 1)
    assert torch.allclose(norm(x).mean((2, 3)), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(norm(x).var((2, 3), correction=0), torch.ones(2, 3), atol=2e-3)


def test_a_down_block_keeps_the_even_pixels_of_its_short_cut():
    block = ResNetV2Encoder((1, 16, 16), 8, filters=4).trunk[4]
    for layer in block.branches[0][-1].modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
    x = torch.randn(2, 4, 16, 16)
    norm, _, conv = block.branches[1]
    expected = (norm(x).relu()[..., ::2, ::2].movedim(1, -1) @ conv.weight[..., 0, 0].T).movedim(-1, 1)
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("lead", [(), (4,), (3, 4)])
def test_networks_take_any_leading_dimensions(lead):
    encoder, decoder, _, discriminator = networks((2, 16, 32), 8, 4)
    x = torch.randn(*lead, 2, 16, 32)
    assert encoder(x).shape == (*lead, 1, 4, 8)
    assert torch.equal(encoder(x.flatten(-3)), encoder(x))
    z = torch.randn(*lead, 8)
    assert decoder(z).shape == x.shape
    assert torch.allclose(decoder(z.reshape(-1, 8)).reshape(x.shape), decoder(z), atol=1e-6)
    assert discriminator(x).shape == (*lead, 1, 2, 4)


def test_R12_an_image_does_not_depend_on_its_batch():
    image, others = torch.randn(1, 1, 16, 16), 9 * torch.randn(5, 1, 16, 16)
    encoder, decoder, sampler, discriminator = networks((1, 16, 16), 8, 4)

    def outputs(x: Tensor) -> list[Tensor]:
        codes = sampler(encoder(x)).base_dist
        return [codes.loc, codes.scale, decoder(codes.loc), discriminator(x)]

    for network in (encoder, decoder, sampler, discriminator):
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    for training in (True, False):
        for network in (encoder, decoder, sampler, discriminator):
            network.train(training)
        for alone, among in zip(outputs(image), outputs(torch.cat([image, others])), strict=True):
            torch.testing.assert_close(among[:1], alone)
    for norm in (m for network in (encoder, decoder, discriminator) for m in network.modules()):
        if isinstance(norm, FrozenBatchNorm):
            assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def test_live_batch_norm_is_an_option_that_couples_the_batch():
    encoder, *_, discriminator = networks((1, 16, 16), 8, 4, live_batch_norm=True)
    x = torch.randn(6, 1, 16, 16)
    for network in (encoder, discriminator):
        assert not torch.allclose(network(x)[:1], network(x[:3])[:1])
        network.eval()
        torch.testing.assert_close(network(x)[:1], network(x[:3])[:1])


def test_every_parameter_gets_a_gradient():
    encoder, decoder, sampler, discriminator = networks((1, 16, 16), 8, 4)
    discriminator(decoder(sampler(encoder(torch.randn(3, 1, 16, 16))).rsample())).square().sum().backward()
    for name, parameter in itertools.chain(*(n.named_parameters() for n in (encoder, decoder, sampler, discriminator))):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_sampler_survives_extreme_log_variances():
    head = LogVarianceHead(1, 2)
    nn.init.constant_(head.log_variance.weight, 1.0)
    scale = head(torch.tensor([[1e4], [-1e4], [0.0]])).base_dist.scale
    expected = torch.tensor([10.0, -15.0, 0.0]).exp()[:, None].expand(3, 2)
    torch.testing.assert_close(scale, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ResNetV2Encoder((1, 28, 28), 8),
            r"28 x 28 pixels cannot be halved 3 times: resize the images \(to 32",
        ),
        (lambda: ResNetV2Decoder(8, (1, 16, 16), stages=0), "at least 1"),
        (lambda: ResNetV2Encoder((1, 16, 16), 12), "latent_dim=12: take a multiple of 8"),
        (lambda: PatchDiscriminator((1, 64, 64), (4, 4)), "five convolutions"),
        (lambda: PatchDiscriminator((1, 4, 4)), "needs 8 x 8 pixels"),
        (lambda: ResNetV2Encoder((1, 16, 16), 8)(torch.zeros(2, 1, 8, 8)), "image_shape"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
