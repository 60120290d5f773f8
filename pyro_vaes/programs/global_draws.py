"""Global variables that are drawn once for a pass over the data, not once for each batch."""

from collections import Counter
from typing import Self

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from .plates import enclosing_plates
from .sites import Role, role
from .units import Units


class KeepGlobals(Messenger):
    """Around the loss of each batch: what is drawn outside the plate of the units is kept.

    Of several runs in one batch (particles) each has draws of its own. What lies in a plate
    that subsamples is not kept. Where the whole data are one unit, the rest is kept if a
    plate subsamples: else it is not known what batches have in common.

    Attributes:
        units: The units of the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.units = Units(1, 1)
        self._kept: dict[str, list[Tensor]] = {}
        self._drawn: Counter[str] = Counter()
        self._new: Message | None = None

    def of(self, units: Units) -> Self:
        """The handler for a batch with these units."""
        self.units = units
        self._drawn.clear()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        if msg["value"] is not None or not self._is_global(msg):
            return

        # of the batch's several runs, the one with this number
        name = str(msg["name"])
        number = self._drawn[name]
        self._drawn[name] += 1
        kept = self._kept.setdefault(name, [])

        if number < len(kept):
            msg["value"] = kept[number]
            msg["done"] = True
        else:
            self._new = msg

    def _pyro_post_sample(self, msg: Message) -> None:
        if self._new is not None and msg is self._new:
            name = str(msg["name"])
            value = msg["value"]
            assert isinstance(value, Tensor)
            self._kept[name].append(value)
        self._new = None

    def _is_global(self, msg: Message) -> bool:
        if role(msg) not in (Role.LATENT, Role.AUXILIARY):
            return False
        units = self.units
        if units.plate is None and units.size == units.num_data:
            return False

        around = enclosing_plates(msg)
        changes = [p.subsamples or p.name == units.plate for p in around]
        return not any(changes)
