"""Where the rows of a posterior lie among the batch dimensions of a program."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor

from pyro_vaes.distributions import (
    InverseAutoregressive,
    RecursiveMixture,
    event_elements,
    has_transforms,
    map_parameters,
)
from pyro_vaes.programs import Plate

Move = Callable[[Tensor, int], Tensor]  # of a parameter, given its event dimensions


@dataclass(frozen=True)
class Layout:
    """The batch dimensions along which vectors of latents lie, as rows of one matrix.

    Attributes:
        dims: The dimensions, negative, leftmost first.
        sizes: Their sizes.
    """

    dims: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """The batch shape: these sizes, and 1 wherever else a plate may be."""
        shape = [1] * -min(self.dims, default=0)
        for dim, size in zip(self.dims, self.sizes, strict=True):
            shape[dim] = size
        return torch.Size(shape)

    @property
    def num_rows(self) -> int:
        return math.prod(self.sizes)

    def rows_first(self, t: Tensor, *, right: int = 0, left: int = 0) -> Tensor:
        """Move the rows behind the ``left`` leading dimensions of a tensor.

        Arguments:
            t: A tensor with batch dimensions, and ``right`` other ones behind them.
            right, left: Numbers of dimensions.
        """
        if len(self.dims) == 1:
            return t.movedim(t.dim() - right + self.dims[0], left)

        sources = [t.dim() - right + dim for dim in self.dims]
        targets = list(range(left, left + len(sources)))
        moved = t.movedim(sources, targets)
        if not sources:
            return moved.unsqueeze(left)
        return moved.flatten(left, left + len(sources) - 1)


class Placement:
    """Puts the batch dimensions that a network returned where the plates of a site are.

    A network may return them as the site has them, right-aligned, with 1 where no plate
    of the site is; or one for each plate, outermost plate first. None at all stands for
    all rows. A shape that fits neither is refused: it would be broadcast along a wrong
    plate.

    Arguments:
        name: Name of the site, for messages.
        plates: Its plates, outermost first.
        num_outer: Number of batch dimensions to the left of all plates (particles,
            values that are enumerated) which what the network was given has.
        model_depth: Number of batch dimensions that all plates of the model use.
    """

    def __init__(
        self,
        name: str,
        plates: Sequence[Plate],
        num_outer: int = 0,
        model_depth: int = 0,
    ) -> None:
        self.name = name
        self.plates = tuple(plates)
        self.depth = -min((plate.dim for plate in plates), default=0)
        self.model_depth = max(model_depth, self.depth)
        self.most_extra = num_outer and num_outer + self.model_depth - self.depth

    @property
    def shape(self) -> torch.Size:
        """The batch shape that the plates give to the site."""
        return self._laid_out([plate.size for plate in self.plates])

    def layout(self, outer: torch.Size) -> Layout:
        """The rows of all plates, and of the dimensions to the left of them."""
        dims = [plate.dim for plate in self.plates]
        dims += [-self.model_depth - 1 - i for i in range(len(outer))]
        sizes = [plate.size for plate in self.plates] + list(reversed(outer))
        ordered = sorted(zip(dims, sizes, strict=True))
        return Layout(tuple(d for d, _ in ordered), tuple(s for _, s in ordered))

    @property
    def in_words(self) -> str:
        """That shape, with B for the size of a single plate."""
        if len(self.plates) != 1:
            return str(tuple(self.shape))
        parts = ["1"] * self.depth
        parts[self.plates[0].dim] = "B"
        return f"({', '.join(parts)})"

    def move(self, batch: torch.Size) -> Move | None:
        """The function that moves a parameter with this batch shape; None to leave it.

        Raises:
            ValueError: The shape does not fit the plates.
        """
        if not batch or self._is_aligned(batch):
            return None
        if self._has_one_per_plate(batch):
            return lambda parameter, event_dim: self._moved(parameter, event_dim)

        sizes = {plate.name: plate.size for plate in self.plates}
        per_plate = tuple(sizes.values())
        raise ValueError(
            f"The posterior of the site {self.name!r} has the batch shape "
            f"{tuple(batch)}, which does not fit its plates {sizes}. Return one "
            f"dimension for each plate, outermost first, {per_plate}, with 1 where the "
            "posterior is the same along a plate, and the site's event shape on the "
            "right?"
        )

    def _is_aligned(self, batch: torch.Size) -> bool:
        """Whether the dimensions lie where the site has them."""
        extra = len(batch) - self.depth
        if not 0 <= extra <= self.most_extra:
            return False
        return _fits(batch[extra:], self.shape)

    def _has_one_per_plate(self, batch: torch.Size) -> bool:
        extra = len(batch) - len(self.plates)
        if not 0 <= extra <= self.most_extra:
            return False
        return _fits(batch[extra:], [plate.size for plate in self.plates])

    def _moved(self, parameter: Tensor, event_dim: int) -> Tensor:
        num_batch = parameter.dim() - event_dim
        if num_batch < len(self.plates):  # it is the same for all rows
            return parameter

        extra = num_batch - len(self.plates)
        event = parameter.shape[num_batch:]

        # plates lie in the order of their dimensions, which need not be that of nesting
        order = sorted(range(len(self.plates)), key=lambda i: self.plates[i].dim)
        dims = [
            *range(extra),
            *(extra + i for i in order),
            *range(num_batch, parameter.dim()),
        ]
        inner = self._laid_out(list(parameter.shape[extra:num_batch]))
        return parameter.permute(dims).reshape(parameter.shape[:extra] + inner + event)

    def _laid_out(self, sizes: Sequence[int]) -> torch.Size:
        """One size for each plate as a batch shape."""
        shape = [1] * self.depth
        for plate, size in zip(self.plates, sizes, strict=True):
            shape[plate.dim] = size
        return torch.Size(shape)


def _fits(batch: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether each dimension has the size that is wanted, or 1."""
    return all(got in (1, size) for got, size in zip(batch, sizes, strict=True))


def place(q: TorchDistribution, placement: Placement) -> TorchDistribution:
    """The posterior with its batch dimensions where the plates of its site are.

    Raises:
        ValueError: Its batch shape does not fit the plates, or the family cannot be
            made anew from its parameters.
    """
    move = placement.move(q.batch_shape)
    if move is None:
        return q

    moved = _mapped(q, move)
    if moved is None:
        raise ValueError(
            "The model has plates to the right of its data plate, but the encoder's "
            f"{type(q).__name__} has the batch shape {tuple(q.batch_shape)} and cannot "
            "be moved there from outside. Let the encoder return the batch shape "
            f"{placement.in_words}, or make the other plates event dimensions with "
            ".to_event?"
        )
    return moved


def reshape_rows(q: TorchDistribution, layout: Layout) -> TorchDistribution:
    """A distribution of rows, batch shape ``(N,)``, with the batch shape of the
    layout."""

    def reshaped(parameter: Tensor, event_dim: int) -> Tensor:
        event = parameter.shape[parameter.dim() - event_dim :]
        return parameter.reshape(layout.shape + event)

    moved = _mapped(q, reshaped)
    assert moved is not None
    return moved


def _mapped(q: TorchDistribution, move: Move) -> TorchDistribution | None:
    """The distribution with moved parameters; None where they cannot be moved."""
    if isinstance(q, RecursiveMixture):
        components = [_mapped(component, move) for component in q.components]
        if any(component is None for component in components):
            return None
        parts = cast(list[TorchDistribution], components)
        return RecursiveMixture(parts, [move(logit, 0) for logit in q.logits])

    try:
        if has_transforms(q) and _is_autoregressive(q):
            base = _mapped(cast(TorchDistribution, q.base_dist), move)
            if base is None:
                return None
            steps = []
            for t in cast(list[InverseAutoregressive], q.transforms):
                context = move(t.context, 1)
                steps.append(InverseAutoregressive(t.network, context, t.order))
            return TransformedDistribution(base, steps)

        # what another map holds for each row cannot be moved
        if has_transforms(event_elements(q)):
            return None
        return map_parameters(q, move)
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _is_autoregressive(q: TransformedDistribution) -> bool:
    return all(isinstance(step, InverseAutoregressive) for step in q.transforms)
