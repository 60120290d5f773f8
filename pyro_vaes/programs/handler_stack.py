"""The scale that handlers around a guide give to a site which they cannot see.

The only place that touches Pyro's private stack of handlers.
"""

from pyro.poutine.runtime import _PYRO_STACK, Message
from torch import Tensor


def ambient_scale(site: Message, *, observed: bool) -> float | Tensor:
    """The scale of a site, with that of the handlers around the guide.

    A KL weight may be a handler around the whole step, while the guide runs the model
    inside a block. A probe is sent through the handlers up to the next block; it is marked
    as done, so that handlers which draw or replay leave it alone, and is never recorded.

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
