"""Which rows are for training, validation and testing: drawn from a seed, and recorded."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Partition", "partition"]


@dataclass(frozen=True, eq=False)
class Partition:
    """The record of a split into training, validation and test rows.

    Arguments:
        seed: The seed of the permutation.
        train: The training rows: indices into the data as read, in the order of the split, shape `(N,)`,
            int64.
        valid: The validation rows, None if there are none.
        test: The test rows, None if there are none.
        official: The parts that came with the data (`"valid"`, `"test"`); their indices count in that part.
    """

    seed: int
    train: Tensor = field(repr=False)
    valid: Tensor | None = field(default=None, repr=False)
    test: Tensor | None = field(default=None, repr=False)
    official: tuple[str, ...] = ()

    def __str__(self) -> str:
        drawn = [name for name in ("valid", "test") if name not in self.official and getattr(self, name) is not None]
        words = [f"official {' and '.join(self.official)}"] if self.official else []
        if drawn:
            words.append(f"{' and '.join(drawn)} drawn at random from train (seed {self.seed})")
        return "; ".join(words) or "all rows are for training, in their order"


def partition(
    num_rows: int, valid: float | int, test: float | int, seed: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Splits rows at random, reproducibly.

    Arguments:
        num_rows: The number of rows.
        valid: The size of the validation part: a fraction in [0, 1) or a count (an integer).
        test: The size of the test part, likewise.
        seed: The seed of the permutation; it touches no global generator.

    Returns:
        The rows of the three parts, int64, disjoint, in the order of the permutation; None for an empty
        validation or test part. If both are empty the rows keep their order.

    Raises:
        ValueError: If a fraction is out of range or no row is left for training.

    Example:
        >>> train, valid, test = partition(10, 0.2, 3, seed=0)
        >>> len(train), len(valid), len(test)
        (5, 2, 3)
    """
    num_valid, num_test = (_count(size, num_rows, name) for size, name in ((valid, "valid"), (test, "test")))
    num_train = num_rows - num_valid - num_test
    if num_train < 1:
        raise ValueError(
            f"split asks for {num_valid} validation and {num_test} test images of {num_rows}, which leaves "
            "none for training: give smaller fractions or counts, split=(valid, test)."
        )
    if num_train == num_rows:
        return torch.arange(num_rows), None, None
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    parts = order.split([num_train, num_valid, num_test])
    return parts[0], parts[1] if num_valid else None, parts[2] if num_test else None


def _count(size: float | int, num_rows: int, name: str) -> int:
    """A fraction or a count as a count."""
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise TypeError(f"split: the {name} part is {size!r}, but a fraction (float) or a count (int) is wanted.")
    if isinstance(size, int):
        valid = size >= 0
    else:
        valid = 0 <= size < 1
    if not valid:
        raise ValueError(
            f"split: the {name} part is {size!r}, but a fraction in [0, 1) or a count >= 0 is wanted: for "
            "instance split=(0.1, 0.1), or split=(500, 500)."
        )
    return size if isinstance(size, int) else round(size * num_rows)
