"""Networks: shapes for any leading dimensions, bounds of scales, and errors that name the cure."""

import math

import pyro
import pytest
import torch
from torch import nn

from pyro_vaes.nn import (
    MLP,
    Chain,
    ConvDecoder,
    ConvEncoder,
    MultivariateNormalHead,
    NormalHead,
    OneHot,
    ResidualBlock,
    StandardNormal,
    as_posterior,
)
from pyro_vaes.nn.heads import bounded_scale


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 5, 6), (2, 7, 9)])
@pytest.mark.parametrize("lead", [(4,), (3, 4), ()])
def test_conv_encoder_and_decoder_take_any_image_and_any_leading_dimensions(shape, lead):
    encoder, decoder = (
        ConvEncoder(shape, [4, 5, 6], 7, num_residual=1),
        ConvDecoder(7, [6, 5, 4], shape, num_residual=1),
    )
    image = torch.rand(*lead, *shape)
    features = encoder(image)
    assert features.shape == (*lead, 7)
    assert torch.allclose(encoder(image.flatten(-3)), features)
    out = decoder(features)
    assert out.shape == (*lead, *shape)
    flat = ConvDecoder(7, [6, 5, 4], shape, flat=True)
    assert flat(features).shape == (*lead, math.prod(shape))
    assert torch.allclose(decoder(features.reshape(-1, 7)).reshape(out.shape), out, atol=1e-6)


def test_conv_encoder_takes_covariates_and_refuses_other_images():
    encoder = ConvEncoder((1, 8, 8), [4], 5, extra_features=3)
    assert encoder(torch.rand(2, 1, 8, 8), torch.rand(2, 3)).shape == (2, 5)
    with pytest.raises(ValueError, match="image_shape"):
        encoder(torch.rand(2, 1, 7, 7), torch.rand(2, 3))


def test_residual_block_starts_from_the_identity_path():
    block, x = ResidualBlock(3), torch.randn(2, 3, 5, 5)
    for parameter in block.body[-1].parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)


def test_mlp_concatenates_inputs_and_broadcasts_leading_dimensions():
    net = MLP(5, [7], 2)
    out = net(torch.randn(6, 4, 3), torch.randn(4, 2))
    assert out.shape == (6, 4, 2)
    assert len(list(MLP(5, [], 2, bias=False).parameters())) == 1
    assert (MLP(5, [7], 2, activate_output=True)(torch.randn(9, 5)) >= 0).all()
    with pytest.raises(ValueError, match=r"takes 5 features, but its inputs have 3 .*; give it in_features=3\?$"):
        net(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"inputs have 3 \+ 1 .*; give it in_features=4\?$"):
        net(torch.randn(4, 3), torch.randn(4, 1))
    with pytest.raises(ValueError, match=r"flatten images first, or give it in_features=3\?$"):
        net(torch.randn(4, 3, 3))
    with pytest.raises(ValueError, match=r"^hidden is 32; a list of widths is wanted: \[32\]\.$"):
        MLP(5, 32, 2)
    with pytest.raises(ValueError, match="positive whole numbers"):
        MLP(5, [0], 2)


def test_chain_passes_several_inputs_to_its_first_module():
    chain = Chain(MLP(5, [7], 4), NormalHead(4, 2))
    assert chain(torch.randn(3, 3), torch.randn(3, 2)).event_shape == (2,)


def test_one_hot_labels():
    one_hot = OneHot(3)
    assert one_hot(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"3 classes, 0\.\.2"):
        one_hot(torch.tensor([3]))
    with pytest.raises(ValueError, match="whole numbers"):
        one_hot(torch.tensor([0.5]))


def test_bounded_scale_is_exp_near_zero_and_stays_within_its_bounds():
    raw = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scale = bounded_scale(raw)
    (slope,) = torch.autograd.grad(scale.log(), raw)
    assert abs(scale.item() - 1) < 1e-12 and abs(slope.item() - 1) < 1e-12
    extremes = bounded_scale(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    assert torch.allclose(extremes, torch.tensor([1e-3, 1e2], dtype=torch.float64))
    values = bounded_scale(torch.linspace(-30, 30, 200, dtype=torch.float64))
    assert (values.diff() > 0).all()


def test_normal_head_scales():
    features = torch.randn(4, 6)
    amortised, fixed = NormalHead(6, 3), NormalHead(6, 3, scale=0.5)
    learned = NormalHead(6, 3, scale=torch.tensor([0.1, 1.0, 2.0]), learn_scale=True)
    assert amortised(features).base_dist.scale.std() > 0
    assert torch.allclose(fixed(features).base_dist.scale, torch.full((4, 3), 0.5))
    assert torch.allclose(learned(features).base_dist.scale[0], torch.tensor([0.1, 1.0, 2.0]))
    assert [n for n, _ in fixed.named_parameters()] == ["loc.weight", "loc.bias"]
    assert "log_scale" in fixed.state_dict() and "log_scale" in dict(learned.named_parameters())
    for bad in ({"scale": -1.0}, {"learn_scale": True}, {"min_scale": 2.0}):
        with pytest.raises(ValueError, match="scale"):
            NormalHead(6, 3, **bad)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_multivariate_head_starts_near_the_standard_normal(dim):
    head = MultivariateNormalHead(6, dim)
    q = head(torch.randn(7, 4, 6))
    assert q.batch_shape == (7, 4) and q.event_shape == (dim,)
    tril = q.scale_tril
    assert torch.equal(tril, tril.tril()) and (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    loss = q.rsample().sum() + q.entropy().sum()
    gradients = torch.autograd.grad(loss, list(head.parameters()))
    assert all(g.isfinite().all() for g in gradients)


def test_standard_normal_moves_with_its_module():
    prior = StandardNormal(3, 2.0).double()
    assert prior().mean.dtype == torch.float64 and prior().variance.tolist() == [4.0, 4.0, 4.0]
    assert prior.state_dict() == {}
    with pytest.raises(ValueError, match="dim >= 1"):
        StandardNormal(0)


def test_as_posterior_reads_what_encoders_return():
    loc, scale = torch.randn(4, 3), torch.rand(4, 3) + 0.1
    from_pair = as_posterior((loc, scale))
    assert from_pair.event_shape == (3,) and torch.equal(from_pair.mean, loc)
    assert as_posterior(pyro.distributions.Normal(loc, scale)).event_shape == (3,)
    with pytest.raises(ValueError, match=r"pyro\.distributions\.Normal"):
        as_posterior(torch.distributions.Normal(loc, scale))
    assert as_posterior(from_pair) is from_pair
    with pytest.raises(ValueError, match="NormalHead"):
        as_posterior(loc)
