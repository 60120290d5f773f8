"""Noise that belongs to a row: the same bits for a row however it is batched, on every device."""

import numpy as np
import torch
from torch import Tensor

# Multipliers of "lowbias32" (Wellons, 2018, https://nullprogram.com/blog/2018/07/31/) as signed 32-bit
# numbers.
_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - 2**32


def _mix(h: Tensor) -> Tensor:
    """A bijection of the 32-bit integers in which every input bit flips about half of the output bits."""
    # torch shifts signed integers arithmetically; the masks make the shifts logical
    h = (h ^ ((h >> 16) & 0xFFFF)) * _MULTIPLIER_1
    h = (h ^ ((h >> 15) & 0x1FFFF)) * _MULTIPLIER_2
    return h ^ ((h >> 16) & 0xFFFF)


def fixed_uniform(rows: Tensor, event_shape: tuple[int, ...], seed: int, stream: int = 0) -> Tensor:
    r"""Uniform noise in [0, 1) that is a function of (seed, stream, row, position) and of nothing else.

    .. math:: u_{nd} = 2^{-24} \lfloor h(h(n \oplus k_1) \oplus h(d \oplus k_2)) / 2^8 \rfloor

    with a 32-bit hash :math:`h` and keys :math:`k_1, k_2` made from the seed. A stateful generator would tie
    the noise of a row to the batch it comes in, and a cache of the noise would be as large as the data set in
    floats.

    Arguments:
        rows: The numbers of the rows, with shape `(B,)`, int64, on any device.
        event_shape: The shape of the noise of one row.
        seed: The seed, a non-negative integer.
        stream: Two streams of one seed are independent of each other, a non-negative integer.

    Returns:
        Noise in [0, 1), multiples of 2^-24, float32, with shape `(B, *event_shape)`, on the device of `rows`.

    Example:
        >>> u = fixed_uniform(torch.tensor([7, 3]), (2, 2), seed=0)
        >>> torch.equal(u[1:], fixed_uniform(torch.tensor([3]), (2, 2), seed=0))
        True
    """
    row_key, position_key = np.random.SeedSequence([seed, stream]).generate_state(2).astype(np.int32).tolist()
    positions = torch.arange(int(np.prod(event_shape)), dtype=torch.int32, device=rows.device)
    rows = _mix(rows.to(torch.int32) ^ row_key).reshape(-1, 1)
    bits = _mix(rows ^ _mix(positions ^ position_key))  # (B, D)
    # 24 bits fit the mantissa of float32 exactly, so u stays below one
    return (((bits >> 8) & 0xFFFFFF).float() * 2.0**-24).reshape(-1, *event_shape)
