"""Programs for evaluation: latents at the means of their distributions, or from the prior."""

import contextlib

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from pyro_vaes.programs import Program, is_latent


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


def prior_of(model: Program) -> Program:
    """The guide that draws a model's latents from their prior: the model, unobserved."""

    def is_observed(message: Message) -> bool:
        return message["type"] == "sample" and message["is_observed"]

    def prior(*args: object) -> None:
        with poutine.block(hide_fn=is_observed):
            model(*args)

    return prior
