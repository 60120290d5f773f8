"""The log-probability of bits: exact to single precision, with its gradients, for sure and for unlikely bits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyro_vaes.ops import log_bernoulli


def softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=500)  # torch's logarithm of a sigmoid loses small values even in float64


LOGITS = torch.cat([torch.linspace(-110, 110, 2201), torch.tensor([0.0, 1e-8, -1e-8, 1e4, -1e4])])


@pytest.mark.parametrize("bit", [0.0, 1.0, 0.3])
def test_the_log_probability_of_bits_and_its_gradients_are_exact_to_single_precision(bit):
    logits, value = LOGITS.clone().requires_grad_(), torch.full_like(LOGITS, bit).requires_grad_()
    exact, wanted = logits.detach().double().requires_grad_(), value.detach().double().requires_grad_()
    ours = log_bernoulli(logits, value)
    theirs = -wanted * softplus(-exact) - (1 - wanted) * softplus(exact)
    assert type(ours.grad_fn).__name__ == "_LogBernoulliBackward"
    torch.testing.assert_close(ours.double(), theirs, rtol=3e-7, atol=1e-7 if bit == 0.3 else 1e-37)
    weight = torch.rand_like(LOGITS)
    gradients = torch.autograd.grad((ours * weight).sum(), (logits, value), create_graph=True)
    expected = torch.autograd.grad((theirs * weight.double()).sum(), (exact, wanted), create_graph=True)
    for g, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=1e-5, atol=1e-6)
    seconds = [torch.autograd.grad(g[0].square().sum(), v)[0] for g, v in ((gradients, logits), (expected, exact))]
    torch.testing.assert_close(seconds[0].double(), seconds[1], rtol=1e-5, atol=1e-6)


def test_not_a_number_stays_one():
    assert log_bernoulli(torch.tensor([float("nan")]), torch.ones(1)).isnan()


def test_logits_and_bits_broadcast():
    assert log_bernoulli(torch.zeros(3), torch.ones(2, 3)).shape == (2, 3)
