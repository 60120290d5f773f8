"""Which tensors a hand-made kernel may take."""

import torch
from torch import nn

from pyro_vaes.ops.hand_written import is_eager


def test_only_plain_single_precision_counts_as_eager():
    x = torch.zeros(2)
    assert is_eager(x, nn.Parameter(x))
    with torch.autograd.forward_ad.dual_level():
        assert not is_eager(x)
    assert not is_eager(x, x.double()) and not is_eager(x.to_sparse())
