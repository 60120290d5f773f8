"""Weight normalisation that starts from the data: every output of every layer has mean 0 and variance 1."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vaes.models import LossyVAE
from pyro_vaes.nn import (
    MADE,
    AutoregressiveLikelihood,
    AutoregressivePrior,
    BernoulliLikelihood,
    Chain,
    ConvDecoder,
    ConvEncoder,
    NormalHead,
    PixelCNN,
    initialise_weight_norm,
    pixel_cnn_layers,
    weight_norm,
)

SHAPE = (1, 6, 6)


def images(n=40):
    return torch.bernoulli(torch.full((n, *SHAPE), 0.3, dtype=torch.float64))


def outputs(layers, call):
    """What each layer returns at its first use, with the channels in front."""
    found = {}

    def note(layer, _, y):
        found.setdefault(layer, (y if isinstance(layer, nn.Linear) else y.movedim(-3, -1)).flatten(0, -2))

    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_every_layer_of_a_lossy_pair_starts_with_mean_0_and_variance_1(tied):
    torch.manual_seed(0)
    encoder = Chain(ConvEncoder(SHAPE, [3], 8, num_residual=1, activation=nn.ELU), NormalHead(8, 3))
    network = PixelCNN(SHAPE, 5, pixel_cnn_layers(3), context_channels=2, num_pointwise=2, tied=tied)
    likelihood = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)
    vae = LossyVAE(encoder, ConvDecoder(3, [4], (2, 6, 6)), likelihood, 3, prior=AutoregressivePrior(3, [8], steps=2))
    weight_norm(vae.double())
    x = images()

    def call(x=x):
        pyro.set_rng_seed(1)
        return Trace_ELBO().loss(vae.model, vae.guide, x)

    initialise_weight_norm(vae, x, call=call)
    normalised = [m for m in vae.modules() if hasattr(m, "gain") or hasattr(m, "parametrizations")]
    found = outputs(normalised, call)
    assert len(found) == len(normalised) == (17 if tied else 19)
    for y in found.values():
        torch.testing.assert_close(y.mean(0), torch.zeros(y.shape[1], dtype=y.dtype), rtol=0, atol=1e-10)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(y.shape[1], dtype=y.dtype), rtol=0, atol=1e-10)


def test_the_closed_form_of_one_layer_and_of_a_transposed_convolution():
    torch.manual_seed(0)
    layer, x = weight_norm(nn.Linear(5, 3)).double(), 7 + 2 * torch.randn(50, 5, dtype=torch.float64)
    direction = layer.weight.detach() / layer.weight.detach().norm(dim=1, keepdim=True)
    t = x @ direction.T
    initialise_weight_norm(layer, x)
    torch.testing.assert_close(layer.weight.norm(dim=1), 1 / t.std(0, correction=0))
    torch.testing.assert_close(layer.bias, -t.mean(0) / t.std(0, correction=0))
    up = weight_norm(nn.ConvTranspose2d(2, 3, 4, stride=2)).double()
    image = torch.randn(9, 2, 5, 5, dtype=torch.float64)
    initialise_weight_norm(up, image)
    torch.testing.assert_close(up(image).mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(up(image).std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_constant_outputs_and_layers_without_bias_stay_finite():
    layer, x = weight_norm(nn.Linear(2, 2)).double(), torch.randn(50, 2, dtype=torch.float64)
    x[:, 1] = 0
    with torch.no_grad():
        layer.parametrizations.weight.original1.copy_(torch.eye(2))  # the second output is its bias
    bias = layer.bias[1].item()
    initialise_weight_norm(layer, x)
    assert layer.weight[1, 1].item() == pytest.approx(layer.weight[1].norm().item()) and layer.bias[1].item() == bias
    assert layer(x)[:, 0].std(correction=0).item() == pytest.approx(1.0)
    bare = weight_norm(nn.Linear(2, 2, bias=False)).double()
    initialise_weight_norm(bare, x + 3)
    torch.testing.assert_close(bare(x + 3).std(0, correction=0), torch.ones(2, dtype=torch.float64))


def test_masked_layers_of_made_are_left_alone_and_nothing_to_initialise_is_said():
    made = weight_norm(MADE(4, [8]))
    assert not any("parametrizations" in n for n, _ in made.named_parameters())
    with pytest.raises(ValueError, match=r"no weight-normalised layer \(0 in MADE\). Apply weight_norm"):
        initialise_weight_norm(made, torch.randn(3, 4))
    network = weight_norm(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"1 in Sequential.*pass call="):
        initialise_weight_norm(network, torch.randn(3, 4), call=lambda x: x)
    before = len(network[0]._forward_hooks)
    initialise_weight_norm(network, torch.randn(3, 4))
    assert len(network[0]._forward_hooks) == before == 0
