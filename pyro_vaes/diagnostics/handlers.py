"""An effect handler for evaluation: latents at the means of their distributions."""

import contextlib

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from pyro_vaes.programs import is_latent


class take_means(Messenger):
    """Let latent sites take the means of their distributions instead of draws.

    Around model and guide, what is computed from the latents no longer depends on chance.
    The densities are those at the means, so do not compute bounds under it.

    Raises:
        ValueError: A site's distribution has no mean, or takes finitely many values.

    Example:
        >>> import pyro, torch
        >>> from pyro.distributions import Normal
        >>> with take_means():
        ...     pyro.sample("z", Normal(torch.tensor(3.0), 1.0))
        tensor(3.)
    """

    def _pyro_sample(self, msg: Message) -> None:
        if not is_latent(msg) or msg["value"] is not None:
            return

        fn = msg["fn"]
        mean = None
        if not fn.has_enumerate_support:  # a category has no mean to compute with
            with contextlib.suppress(NotImplementedError):
                mean = fn.mean

        if mean is None:
            raise ValueError(
                f"The distribution of {msg['name']!r} ({type(fn).__name__}) has no mean in its support; take draws?"
            )
        msg["value"] = mean
        msg["done"] = True
