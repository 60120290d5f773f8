"""What handlers around a guide do to sites that they cannot see, and runs inside plates.

The only place that touches Pyro's private stacks: of handlers, and of plates'
dimensions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK, Message
from torch import Tensor


def ambient_scale(site: Message, *, observed: bool) -> float | Tensor:
    """The scale of a site, with that of the handlers around the guide.

    A KL weight may be a handler around the whole step, while the guide runs the model
    inside a block. A probe is sent through the handlers up to the next block; it is
    marked as done, so that handlers which draw or replay leave it alone, and is never
    recorded.

    Arguments:
        site: The site as the hidden run has it.
        observed: Whether handlers should take it for an observation.
    """
    probe = Message(
        type="sample",
        name=site["name"],
        fn=site["fn"],
        is_observed=observed,
        args=(),
        kwargs={},
        value=site["value"],
        infer={},
        scale=site["scale"],
        mask=None,
        cond_indep_stack=(),
        done=True,
        stop=False,
        continuation=None,
    )
    for handler in reversed(_PYRO_STACK):
        handler._process_message(probe)
        if probe["stop"]:
            break
    return probe["scale"]


@contextmanager
def below(kind: type[Messenger]) -> Iterator[None]:
    """Inside, only the handlers below the innermost one of a kind are there.

    What was entered since then, plates among it, is out of sight, and the names and
    dimensions of these plates are free. Without a handler of the kind nothing changes.
    """
    handlers = list(_PYRO_STACK)
    entered: set[str | None] = set()
    innermost = len(handlers) - 1
    while innermost >= 0 and not isinstance(handlers[innermost], kind):
        handler = handlers[innermost]
        if isinstance(handler, IndepMessenger):
            entered.add(handler.name)
        innermost -= 1
    if innermost < 0:
        yield
        return

    taken = list(_DIM_ALLOCATOR._stack)
    free = [*taken]
    for dim, name in enumerate(taken):
        if name in entered:
            free[dim] = None

    _PYRO_STACK[:] = handlers[:innermost]
    _DIM_ALLOCATOR._stack = free
    try:
        yield
    finally:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack = taken
