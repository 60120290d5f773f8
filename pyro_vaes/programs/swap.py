"""Running a model as a guide: its observations hidden, its priors swapped for posteriors.

The model's own code makes the plates, masks, scales and names of the guide's sites, so
they fit whatever the program is. The run ends behind the last latent site: what the
program computes from its latents (a decoder) is not run twice in a step.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from .handler_stack import below
from .reach import Program
from .sites import DRAWN, Role, role

Answer = TorchDistribution | Tensor


class _Ended(BaseException):
    """Every latent site is drawn: no Exception, which a program might catch."""


class SwapPriors(Messenger):
    """Inside, a model's latent sites are drawn from posteriors, and nothing is observed.

    Arguments:
        answer: Called with the message of each latent site. It returns the distribution
            to draw from; or the value itself, and then the site is no part of the
            guide. It may draw sites of the guide with ``pyro.sample`` on the way; these
            lie in the plates, masks and scales around the site.
        latents: Names of the latent sites, behind the last of which the run ends.
        rows: Rows that plates must hold, by name; others draw theirs. It may be filled
            until the run.

    Attributes:
        values: Values so far, of latent and deterministic sites and what was drawn on
            the way, by name.
        rows: The rows that the plates so far hold, by name.
    """

    def __init__(
        self,
        answer: Callable[[Message], Answer],
        latents: Collection[str],
        rows: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self._answer = answer
        self._left = set(latents)
        self._given_rows = {} if rows is None else rows
        self._is_answering = False

    def _pyro_sample(self, msg: Message) -> None:
        if self._is_answering:  # a site that the answer draws on its way
            return
        if not self._left:
            raise _Ended(self)

        kind = role(msg)
        if kind is Role.SUBSAMPLING:
            if msg["name"] in self._given_rows:
                msg["value"] = self._given_rows[msg["name"]]
                msg["done"] = True
            return
        if kind not in DRAWN:
            msg["stop"] = True  # handlers around the guide do not see it
            return

        self._is_answering = True
        try:
            answer = self._answer(msg)
        finally:
            self._is_answering = False

        if isinstance(answer, Tensor):
            msg["value"] = answer
            msg["done"] = msg["stop"] = True
        else:
            msg["fn"] = answer

    def _pyro_post_sample(self, msg: Message) -> None:
        name, value = str(msg["name"]), msg["value"]
        kind = role(msg)
        if kind is Role.SUBSAMPLING:
            self.rows[name] = value
            return

        if kind in DRAWN or kind is Role.DETERMINISTIC:
            self.values[name] = value
        self._left.discard(name)

        # a continuation (enumeration in sequence) is still to come: end at the next
        # site
        ends = not self._left and not self._is_answering
        if ends and msg["continuation"] is None:
            raise _Ended(self)


class HiddenPlates(Messenger):
    """Inside, the subsampling of plates is no part of what is traced around.

    For a program that is run beside another one which has the same plates.

    Attributes:
        rows: The rows that the plates hold, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        if role(msg) is Role.SUBSAMPLING:
            msg["stop"] = True

    def _pyro_post_sample(self, msg: Message) -> None:
        if role(msg) is Role.SUBSAMPLING:
            self.rows[str(msg["name"])] = msg["value"]


def run_swapped(
    swap: SwapPriors,
    model: Program,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> dict[str, Tensor]:
    """Run a model inside a :class:`SwapPriors`; the values of its latent sites by
    name."""
    try:
        with swap:
            model(*args, **kwargs)
    except _Ended as ended:
        if ended.args[0] is not swap:  # of a guide around this one
            raise
    return swap.values


def outside_the_run() -> AbstractContextManager[None]:
    """Inside, a program runs as if it were outside the run of the model that is going on.

    A guide that is asked for a posterior in the middle of that run, within the model's
    plates, may then run the model itself.
    """
    return below(SwapPriors)


@contextmanager
def copied_buffers(modules: Collection[nn.Module]) -> Iterator[None]:
    """Inside, these modules change copies of their buffers."""
    kept = [(module, dict(module._buffers)) for module in modules]
    try:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
