"""The finite Gibbs chain of a hierarchy: what its tables promise. (Stationarity: item T7 in tests/models.)"""

import pytest
import torch

from pyro_vaes.theory import gibbs_chain


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def table(*shape):
    return torch.randn(*shape).softmax(-1)


def test_levels_above_the_first_are_summed_out():
    p3, p2, p1, px = table(2), table(2, 3), table(3, 4), table(4, 5)
    chain = gibbs_chain(p3, p2, p1, px)
    joint = torch.einsum("a,ab,bc,cx->cx", p3, p2, p1, px)
    torch.testing.assert_close(chain.prior, joint.sum(1))
    torch.testing.assert_close(chain.posterior, (joint / joint.sum(0)).mT)
    direct = gibbs_chain(chain.prior, px)
    torch.testing.assert_close(direct.transition, chain.transition)
    detailed = chain.marginal.unsqueeze(1) * chain.transition
    torch.testing.assert_close(detailed, detailed.mT, msg="detailed balance")


def test_the_chain_forgets_at_the_rate_of_its_gap():
    chain = gibbs_chain(table(4), table(4, 6))
    starts, steps = torch.eye(6), 12
    distance = (chain.run(starts, steps) - chain.marginal).square().div(chain.marginal).sum(1).sqrt()
    first = (starts - chain.marginal).square().div(chain.marginal).sum(1).sqrt()
    assert 0 < chain.spectral_gap < 1
    assert (distance <= (1 - chain.spectral_gap) ** steps * first + 1e-14).all()
    values = torch.linalg.eigvals(chain.transition).real.sort().values
    assert 1 - chain.spectral_gap == pytest.approx(values[-2].item(), abs=1e-12)
    torch.testing.assert_close(chain.run(starts, 3), chain.transition @ chain.transition @ chain.transition)


def test_a_reducible_chain_has_no_gap():
    chain = gibbs_chain(table(5), torch.block_diag(table(2, 3), table(2, 2), table(1, 2)))
    assert chain.num_classes == 3
    assert chain.spectral_gap == pytest.approx(0, abs=1e-12)
    assert gibbs_chain(table(1), table(1, 1)).spectral_gap == 1.0


BAD = {
    "one table": ((torch.ones(1),), "besides"),
    "transposed": ((torch.full((2,), 0.5), torch.full((3, 2), 0.5)), "must be the 2 states"),
    "batched": ((torch.full((1, 2), 0.5), torch.full((2, 2), 0.5)), r"Table 0 has shape \(1, 2\)"),
    "sums": ((torch.ones(2), torch.full((2, 2), 0.5)), "Table 0 holds"),
    "negative": ((torch.full((2,), 0.5), torch.tensor([[2.0, -1.0], [0.5, 0.5]])), "Table 1 holds"),
    "impossible": ((torch.full((2,), 0.5), torch.tensor([[1.0, 0.0], [1.0, 0.0]])), "leave those columns out"),
}


@pytest.mark.parametrize(("tables", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_tables_are_named(tables, message):
    with pytest.raises(ValueError, match=message):
        gibbs_chain(*tables)
