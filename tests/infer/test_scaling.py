"""P10: losses that are sums over units scale with N under plates, scales inside the model, and masks."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vaes.guides import AmortizedNormal
from pyro_vaes.infer import (
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    StickingTheLanding_ELBO,
)
from pyro_vaes.nn import NormalHead
from pyro_vaes.programs import FixedRows

B = 6
X = torch.randn(B, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MASK = torch.tensor([True, True, False, True, True, True])


class Pair(nn.Module):
    """A linear pair in a plate of N data, weighed and masked as asked for."""

    def __init__(self, num_data, *, scale, masked):
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.head = nn.Linear(2, 3).double(), NormalHead(3, 2).double()
        self.num_data, self.scale, self.masked = num_data, scale, masked

    def around(self, x):
        mask = MASK if self.masked else torch.ones(B, dtype=torch.bool)
        return pyro.plate("data", self.num_data, subsample=torch.arange(B)), poutine.mask(mask=mask)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        plate, mask = self.around(x)
        with plate, mask, poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("head", self.head)
        plate, mask = self.around(x)
        with plate, mask, poutine.scale(scale=self.scale):
            pyro.sample("z", self.head(x))


SUMS = {
    "trace": Trace_ELBO,
    "mean field": TraceMeanField_ELBO,
    "importance weighted": lambda: ImportanceWeighted_ELBO(3),
    "doubly reparameterised": lambda: DReG_ELBO(3),
    "sticking the landing": StickingTheLanding_ELBO,
    "free bits": lambda: FreeBits_ELBO(0.1),
}


def loss_and_gradients(bound, num_data, **kwargs):
    pair = Pair(num_data, **kwargs)
    pyro.set_rng_seed(3)
    loss = bound().differentiable_loss(pair.model, pair.guide, X)
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(pair.parameters()))])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("bound", SUMS)
def test_p10_five_times_the_data_cost_five_times_as_much(bound, scale, masked):
    one, of_one = loss_and_gradients(SUMS[bound], B, scale=scale, masked=masked)
    five, of_five = loss_and_gradients(SUMS[bound], 5 * B, scale=scale, masked=masked)
    assert five == pytest.approx(5 * one, rel=1e-12)
    torch.testing.assert_close(of_five, 5 * of_one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bound", SUMS)
def test_p10_inner_scales_count_or_are_said_to_have_no_effect(bound, caplog):
    one, _ = loss_and_gradients(SUMS[bound], B, scale=1.0, masked=False)
    weighed, _ = loss_and_gradients(SUMS[bound], B, scale=0.3, masked=False)
    if weighed == pytest.approx(one):
        assert "have no effect" in caplog.text
    else:
        assert weighed == pytest.approx(0.3 * one, rel=1e-9)


@pytest.mark.parametrize("bound", SUMS)
def test_p10_masked_rows_have_no_gradient(bound):
    """What a masked row holds changes nothing."""
    pair, losses = Pair(5 * B, scale=1.0, masked=True), []
    for shift in (0.0, 100.0):
        x = torch.where(MASK.unsqueeze(-1), X, X + shift)
        pyro.set_rng_seed(3)
        losses.append(SUMS[bound]().differentiable_loss(pair.model, pair.guide, x).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_p10_the_library_s_guide_scales_alike():
    losses = []
    for num_data in (B, 5 * B):
        pair = Pair(num_data, scale=1.0, masked=False)
        rows = FixedRows()  # no draw of rows, so that the noise is the same
        guide = AmortizedNormal(pair.model, pair.head)
        pyro.set_rng_seed(3)
        losses.append(Trace_ELBO().differentiable_loss(rows(pair.model), rows(guide), X).item())
    assert losses[1] == pytest.approx(5 * losses[0], rel=1e-12)
