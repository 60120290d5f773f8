"""Which rows are for training, validation and testing: drawn from a seed, and recorded."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

PARTS = ("train", "valid", "test")


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
        drawn = [name for name in PARTS[1:] if name not in self.official and getattr(self, name) is not None]
        words = [f"official {' and '.join(self.official)}"] if self.official else []
        if drawn:
            words.append(f"{' and '.join(drawn)} drawn at random from train (seed {self.seed})")
        return "; ".join(words) or "all rows are for training, in their order"


def partition(num_rows: int, valid: float | int, test: float | int, seed: int) -> dict[str, Tensor]:
    """Splits rows at random, reproducibly.

    Arguments:
        num_rows: The number of rows.
        valid: The size of the validation part: a fraction in [0, 1) or a count (an integer).
        test: The size of the test part, likewise.
        seed: The seed of the permutation; it touches no global generator.

    Returns:
        The rows of the parts by name, int64, disjoint, in the order of the permutation, without a validation or
        test part that is empty. If both are empty the rows keep their order.

    Raises:
        ValueError: If a fraction is out of range or no row is left for training.

    Example:
        >>> {name: len(rows) for name, rows in partition(10, 0.2, 3, seed=0).items()}
        {'train': 5, 'valid': 2, 'test': 3}
    """
    num_valid = _count(valid, num_rows, "valid")
    num_test = _count(test, num_rows, "test")
    num_train = num_rows - num_valid - num_test
    if num_train < 1:
        raise ValueError(
            f"split asks for {num_valid} validation and {num_test} test images of {num_rows}, which leaves "
            "none for training: give smaller fractions or counts, split=(valid, test)."
        )
    if num_train == num_rows:
        return {"train": torch.arange(num_rows)}

    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    parts = zip(PARTS, order.split([num_train, num_valid, num_test]), strict=True)
    return {name: rows for name, rows in parts if len(rows)}


def _count(size: float | int, num_rows: int, name: str) -> int:
    """A fraction or a count as a count."""
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise TypeError(f"split: the {name} part is {size!r}, but a fraction (float) or a count (int) is wanted.")
    if size < 0 or (isinstance(size, float) and not size < 1):
        raise ValueError(
            f"split: the {name} part is {size!r}, but a fraction in [0, 1) or a count >= 0 is wanted: for "
            "instance split=(0.1, 0.1), or split=(500, 500)."
        )
    return size if isinstance(size, int) else round(size * num_rows)
