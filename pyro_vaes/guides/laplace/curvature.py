"""Which way score and curvature of a program are computed: by hand for ReLU networks, else by tangents through it.

The closed form is compared with the generic one at the first batch, and left where they disagree.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from pyro.distributions import Bernoulli
from torch import Tensor, nn

from ..joint import Joint, refuse_dependence
from .chains import ReluChain
from .fisher import clipped_bernoulli
from .linearise import DEPENDENT, Linearised, Lineariser, ProgramRun, run_program
from .relu_chain import find_chain, record_chains

Linearise = Callable[..., Linearised]


@dataclass(eq=False)
class Curvature:
    """The linearisation of a program's batches; the arguments are those of the Laplace guide.

    What the first calls find is kept: that no datum sees its batch mates, and for each network whether the closed form
    may be trusted. A network that is gone takes its verdict with it.

    Attributes:
        verdicts: Whether the closed form agreed with the generic one, by the network.
        independent: Whether a first call has found the data independent.
    """

    path: Literal["auto", "generic", "fast"]
    chunk_size: int | None
    s_jitter: float
    fallback: Literal["hessian"] | None

    def __post_init__(self) -> None:
        self.verdicts = WeakKeyDictionary[nn.Module, bool]()
        self.independent = False

        if self.path not in ("auto", "generic", "fast"):
            raise ValueError(f"path must be 'auto', 'generic' or 'fast', but got {self.path!r}.")
        if self.fallback not in (None, "hessian"):
            raise ValueError(f"fallback must be None or 'hessian', but got {self.fallback!r}.")
        if not 0 <= self.s_jitter < 0.5:
            raise ValueError(f"s_jitter clips a probability and lies in [0, 0.5), but got {self.s_jitter!r}; 1e-5?")

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles of a guide have other networks, and find out about them anew."""
        return type(self), (self.path, self.chunk_size, self.s_jitter, self.fallback)

    def of(self, joint: Joint, mu: Tensor) -> Linearise:
        """The function that linearises this batch's log joint, of which ``mu`` is a point ``(B, d)``."""
        with refuse_dependence(), record_chains() as calls:
            first = run_program(joint, mu)
        self._check_independence(joint, first)

        overrides = {Bernoulli: clipped_bernoulli(self.s_jitter)} if self.s_jitter else None
        generic = Lineariser(joint, self.fallback, overrides, self.chunk_size, first)
        if self.path == "generic":
            return generic

        chain = find_chain(calls, first.sites, first.z)
        if overrides is not None:
            chain = "its probabilities are clipped (s_jitter)"
        if isinstance(chain, str):
            if self.path == "fast":
                raise ValueError(
                    f"path='fast' is for chains of Linear and ReLU layers with Gaussian noise or binary outputs, but "
                    f"of this program {chain}. Use path='auto'."
                )
            return generic

        by_hand = chain.prepare()
        return by_hand if self._trusts(chain, by_hand, generic, mu) else generic

    def _check_independence(self, joint: Joint, first: ProgramRun) -> None:
        """At the first call: the densities of the other data must not depend on the first one's latents."""
        size = len(first.given)
        if self.independent or size < 2:
            return

        others = joint.log_prob(first.sites, size)[1:].sum()
        if others.requires_grad:
            (gradient,) = torch.autograd.grad(others, first.z, retain_graph=True)
            own, mates = gradient[0].abs().max(), gradient.abs().max()
            if bool(own > 1e-6 * mates):
                raise ValueError(DEPENDENT)
        self.independent = True

    def _trusts(self, chain: ReluChain, by_hand: Linearise, generic: Linearise, mu: Tensor) -> bool:
        """Whether the closed form agrees with the generic one at the first batch that can tell."""
        if chain.module in self.verdicts:
            return self.verdicts[chain.module]

        with torch.no_grad():
            found, wanted = by_hand(mu), generic(mu)
        assert found.score is not None and wanted.score is not None

        whole, largest = wanted.precision.norm(), float(wanted.precision.abs().max())
        close = (found.precision - wanted.precision).norm() <= 1e-4 * whole
        same = torch.allclose(found.score, wanted.score, rtol=1e-3, atol=1e-3 * largest)
        agrees = same and bool(close)
        if not agrees:
            warnings.warn(
                "The closed form for ReLU networks disagrees with the generic curvature of this program, which is "
                "used instead. Does a layer compute something else than its type says?",
                stacklevel=3,
            )
        # a decoder that starts at zero says nothing yet: look again at the next call
        of_data = wanted.precision - torch.diag_embed(chain.prior_precision)
        if not agrees or bool(of_data.norm() > 1e-6 * whole):
            self.verdicts[chain.module] = agrees
        return agrees
