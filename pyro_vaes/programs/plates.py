"""The plates around a sample site, and what their rows stand for."""

from dataclasses import dataclass

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message

LOOP = 0  # the "dimension" of a plate whose rows a program loops over


@dataclass(frozen=True)
class Plate:
    """A plate around a site.

    Attributes:
        name: Its name.
        dim: Its batch dimension, negative; 0 where the program loops over its rows.
        size: Number of rows that it holds in this run.
        num_data: Number of data that these rows stand for: its full size.
    """

    name: str
    dim: int
    size: int
    num_data: int

    @property
    def subsamples(self) -> bool:
        """Whether the rows stand for other data as well."""
        return self.num_data != self.size

    @property
    def scale(self) -> float:
        """How many data one row stands for."""
        return self.num_data / self.size

    @property
    def is_loop(self) -> bool:
        """Whether the program loops over the rows: ``for i in pyro.plate(...)``."""
        return self.dim == LOOP


def enclosing_plates(site: Message) -> tuple[Plate, ...]:
    """All plates around a site, outermost first, those of loops among them."""
    found = []
    for frame in site["cond_indep_stack"]:
        found.append(_read(frame, site))
    return tuple(found)


def plates(site: Message) -> tuple[Plate, ...]:
    """The vectorised plates around a site, outermost first."""
    found = []
    for plate in enclosing_plates(site):
        if not plate.is_loop:
            found.append(plate)
    return tuple(found)


def find_plate(site: Message, name: str) -> Plate:
    """The plate of that name around a site; a KeyError where there is none."""
    return {plate.name: plate for plate in enclosing_plates(site)}[name]


def loop_row(site: Message, name: str) -> int | None:
    """In which round of a plate's loop a site stands, from 1; None in no loop of it."""
    for frame in site["cond_indep_stack"]:
        if frame.name == name and not frame.vectorized:
            return frame.counter
    return None


def _read(frame: CondIndepStackFrame, site: Message) -> Plate:
    dim = frame.dim or LOOP
    size, num_data = int(frame.size), int(frame.full_size or frame.size)
    if size < 0:  # pyro.plate("data"), which has no size: as many rows as the site has
        size = num_data = _rows(site, dim)
    return Plate(frame.name, dim, size, num_data)


def _rows(site: Message, dim: int) -> int:
    """The size of a batch dimension of a site."""
    fn, value = site["fn"], site["value"]
    shape = torch.Size(fn.batch_shape)
    if value is not None:
        events_from = value.dim() - len(fn.event_shape)
        shape = torch.broadcast_shapes(shape, value.shape[:events_from])
    return shape[dim] if len(shape) >= -dim else 1
