"""The noise of a row: the same however it is batched, and noise."""

import pytest
import torch

from pyro_vaes.data.noise import fixed_uniform


def test_rows_do_not_depend_on_their_batch():
    rows = torch.arange(50)
    u = fixed_uniform(rows, (3, 4), seed=7)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fixed_uniform(order, (3, 4), seed=7), u[order])
    assert torch.equal(fixed_uniform(rows[20:21], (3, 4), seed=7), u[20:21])


def test_seeds_and_streams_differ():
    rows = torch.arange(100)
    one = fixed_uniform(rows, (10,), seed=0)
    for other in (fixed_uniform(rows, (10,), seed=1), fixed_uniform(rows, (10,), seed=0, stream=1)):
        assert (one == other).float().mean() < 0.01
        # n = 1000 pairs: a correlation has the standard error 1 / sqrt(1000) = 0.032; five of them
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() < 0.16


def test_noise_is_uniform_and_uncorrelated():
    u = fixed_uniform(torch.arange(2000), (500,), seed=3).double()  # n = 10^6
    assert u.min() >= 0 and u.max() < 1
    # standard errors: mean sqrt(1/12/n) = 2.9e-4, variance sqrt(1/180/n) = 7.5e-5; tolerance five of them
    assert abs(u.mean() - 0.5) < 1.5e-3
    assert abs(u.var() - 1 / 12) < 3.8e-4
    # 100 bins of 10^4: chi-squared with 99 degrees of freedom has mean 99 and standard deviation 14.1
    counts = torch.histc(u, 100, 0, 1)
    assert abs(((counts - 1e4) ** 2 / 1e4).sum() - 99) < 5 * 14.1
    z = (u - 0.5) * 12**0.5
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z[1:, 1:], z[:-1, :-1]), (z[8:, :], z[:-8, :])):
        # a mean of about 10^6 products of unit variance has the standard error 1e-3
        assert abs((a * b).mean()) < 5e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree_bit_for_bit():
    rows = torch.arange(100)
    assert torch.equal(fixed_uniform(rows.cuda(), (64,), seed=2).cpu(), fixed_uniform(rows, (64,), seed=2))
