"""Which way score and curvature of a program are computed: by hand for ReLU networks, else by tangents through it.

The closed form is compared with the generic one at the first batch, and left where they disagree.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pyro.distributions import Bernoulli
from torch import Tensor

from pyro_vaes.guides.joint import Joint, refuse_dependence
from pyro_vaes.guides.laplace.fisher import clipped_bernoulli
from pyro_vaes.guides.laplace.gaussian_chain import GaussianChain
from pyro_vaes.guides.laplace.linearise import Linearised, linearise
from pyro_vaes.guides.laplace.relu_chain import find_chain, record_chains, same_noise

__all__ = ["Curvature"]

Linearise = Callable[..., Linearised]


class Curvature:
    """The linearisation of a program's batches; the arguments are those of the Laplace guide.

    Attributes:
        verdicts: Whether the closed form agreed with the generic one, by the identity of the network.
    """

    def __init__(
        self,
        path: Literal["auto", "generic", "fast"],
        *,
        chunk_size: int | None,
        s_jitter: float,
        fallback: Literal["hessian"] | None,
    ) -> None:
        if path not in ("auto", "generic", "fast"):
            raise ValueError(f"path must be 'auto', 'generic' or 'fast', but got {path!r}.")
        if fallback not in (None, "hessian"):
            raise ValueError(f"fallback must be None or 'hessian', but got {fallback!r}.")
        if not 0 <= s_jitter < 0.5:
            raise ValueError(f"s_jitter clips a probability and lies in [0, 0.5), but got {s_jitter!r}; 1e-5?")
        self.path, self.chunk_size, self.s_jitter, self.fallback = path, chunk_size, s_jitter, fallback
        self.verdicts: dict[int, bool] = {}
        self._independent = False  # whether a first call has found the data independent

    def of(self, joint: Joint, mu: Tensor) -> Linearise:
        """The function that linearises this batch's log joint, of which ``mu`` is a point ``(B, d)``."""
        overrides = {Bernoulli: clipped_bernoulli(self.s_jitter)} if self.s_jitter else None
        generic = partial(linearise, joint, fallback=self.fallback, overrides=overrides, chunk_size=self.chunk_size)
        with refuse_dependence(), record_chains() as calls:
            sites = joint.sites(mu)
        self._check_independence(mu, joint)
        if self.path == "generic":
            return generic
        chain = find_chain(calls, sites, mu) if overrides is None else "its probabilities are clipped (s_jitter)"
        if isinstance(chain, GaussianChain) and len(mu) == 1:
            with torch.no_grad():
                moved = joint.sites(mu + 0.1)
            chain = chain if same_noise(sites, moved) else "the scale of its observation depends on the latents"
        if isinstance(chain, str):
            if self.path == "fast":
                raise ValueError(
                    f"path='fast' is for chains of Linear and ReLU layers with Gaussian noise or binary outputs, but "
                    f"of this program {chain}. Use path='auto'."
                )
            return generic
        fast = chain.prepare()
        if id(chain.module) not in self.verdicts:
            with torch.no_grad():
                by_hand, wanted = fast(mu), generic(mu)
            agree, of_data = _agree(by_hand, wanted), wanted.precision - torch.diag_embed(chain.prior_precision)
            if agree and not bool(of_data.norm() > 1e-6 * wanted.precision.norm()):
                return fast  # a decoder that starts at zero says nothing yet: look again at the next call
            self.verdicts[id(chain.module)] = agree
            if not agree:
                warnings.warn(
                    "The closed form for ReLU networks disagrees with the generic curvature of this program, which is "
                    "used instead. Does a layer compute something else than its type says?",
                    stacklevel=2,
                )
        return fast if self.verdicts[id(chain.module)] else generic

    def _check_independence(self, mu: Tensor, joint: Joint) -> None:
        """At the first call: moving the first datum's latents must leave the densities of the others alone."""
        if self._independent or len(mu) < 2:
            return
        with torch.no_grad():
            moved = torch.cat([mu[:1] + 0.1, mu[1:]])
            before, after = (joint.log_prob(joint.sites(z), len(mu))[1:] for z in (mu, moved))
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(
                "The density of a datum changes with the latents of its batch mates, or from one evaluation to the "
                "next; the Laplace posterior needs data that are independent given their latents. Is there a dropout, "
                "a normalisation over the batch, or a sample outside Pyro in the model?"
            )
        self._independent = True


def _agree(one: Linearised, two: Linearised) -> bool:
    assert one.score is not None and two.score is not None
    close = (one.precision - two.precision).norm() <= 1e-4 * two.precision.norm()
    return bool(close) and torch.allclose(one.score, two.score, rtol=1e-3, atol=1e-3 * float(two.precision.abs().max()))
