"""Going back to a moment: generators and buffers as they were.

A loss is evaluated twice from one state where a graph is recorded or compared.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class Moment:
    """The states of the generators and of some buffers.

    Arguments:
        buffers: The tensors that a loss may change in place.
        device: Where the loss draws its random numbers, beside the CPU.
    """

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        self.device = device
        self.buffers = list(buffers)
        self.values = [buffer.detach().clone() for buffer in buffers]
        self.torch = torch.get_rng_state()
        self.cuda = None
        if device.type == "cuda":
            self.cuda = torch.cuda.get_rng_state(device)
        self.python = random.getstate()
        self.numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - Pyro seeds it

    def back(self) -> None:
        """Return to it."""
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        with torch.no_grad():
            for buffer, value in zip(self.buffers, self.values, strict=True):
                buffer.copy_(value)

    def drew_outside_torch(self) -> str | None:
        """Which generator of another library has moved since."""
        if random.getstate() != self.python:
            return "Python's random"
        now = np.random.get_state(legacy=False)  # noqa: NPY002
        if not _same_state(self.numpy, now):
            return "NumPy's generator"
        return None

    def same_generators(self, other: "Moment") -> bool:
        """Whether torch's generators stand where they stood at another moment."""
        same = torch.equal(self.torch, other.torch)
        if self.cuda is not None and other.cuda is not None:
            same = same and torch.equal(self.cuda, other.cuda)
        return same


def _same_state(one: object, two: object) -> bool:
    """Whether two states of NumPy's generator are equal."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return all(_same_state(one[name], two[name]) for name in one)
    return bool(np.array_equal(one, two))  # type: ignore[arg-type]
