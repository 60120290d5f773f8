"""The plates around a sample site, and what their rows stand for."""

from dataclasses import dataclass

from pyro.poutine.runtime import Message


@dataclass(frozen=True)
class Plate:
    """A vectorised plate around a site.

    Attributes:
        name: Its name.
        dim: Its batch dimension, negative.
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


def plates(site: Message) -> tuple[Plate, ...]:
    """The vectorised plates around a site, outermost first."""
    found = []
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            num_data = frame.size if frame.full_size is None else frame.full_size
            found.append(Plate(frame.name, frame.dim, frame.size, num_data))
    return tuple(found)


def find_plate(site: Message, name: str) -> Plate:
    """The plate of that name around a site; a KeyError where there is none."""
    return {plate.name: plate for plate in plates(site)}[name]
