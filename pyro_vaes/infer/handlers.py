"""KL weights as an effect handler."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.programs import evidence_for, is_auxiliary, is_latent

Weight = float | Tensor
COMMON_SCALE = (
    "Sites that the model alone has and that are enumerated are summed out together with all that depends on them, so "
    "that they must have one KL weight (scale). Weigh them alike, or use the model whose prior is the mixture itself, "
    "without such sites, whose latents can be weighed one by one: LadderClusteringVAE.model with Trace_ELBO?"
)


def needs_common_scale(error: BaseException | None) -> bool:
    """Whether an error is :class:`~pyro.infer.TraceEnum_ELBO`'s refusal of unequal scales."""
    return isinstance(error, ValueError) and "share a common poutine.scale" in str(error)


@runtime_checkable
class NumberedHandler(Protocol):
    """A handler whose numbers may change from step to step, so that graphs take them as inputs.

    Attributes:
        form: What else the handler is made of.
        numbers: The numbers.
    """

    @property
    def form(self) -> Hashable: ...

    @property
    def numbers(self) -> tuple[float, ...]: ...

    def with_numbers(self, numbers: Sequence[Tensor]) -> AbstractContextManager[object]:
        """The same handler with tensors without dimensions in place of the numbers."""


class scale_latents(Messenger):
    """Weigh the KL term of the bound: multiply the scale of the latent sites by beta.

    The bound becomes ``E log p(x | z) - beta E[log q(z | x) - log p(z)]`` (Higgins et al., 2017), provided that model
    and guide are both inside: bounds such as :class:`~pyro.infer.TraceMeanField_ELBO` read only the guide's scale and
    others use both. Use it around the step, which covers both, or wrap both::

        with scale_latents(0.5):
            svi.step(x)

        SVI(scale_latents(0.5)(vae.model), scale_latents(0.5)(vae.guide), optim, loss)

    A factor marked ``infer={"evidence_for": "y"}`` goes by the weight of that site.

    Arguments:
        beta: A positive weight for all latent sites, or a mapping from site names to weights. Weights may be tensors
            without dimensions, whose values are not looked at.

    Raises:
        ValueError: A weight is not positive (start a warm-up at, say, 1e-4), a named site does not occur, or sites that
            :class:`~pyro.infer.TraceEnum_ELBO` sums out together have different weights.

    References:
        | beta-VAE (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl
    """

    def __init__(self, beta: Weight | Mapping[str, Weight]) -> None:
        super().__init__()
        weights = list(beta.values()) if isinstance(beta, Mapping) else [beta]
        if not all(w > 0 for w in weights if not isinstance(w, Tensor)):
            raise ValueError(f"A KL weight must be positive, but got {beta}; start a warm-up at, say, 1e-4.")
        self.beta = beta
        self._met: set[str] = set()

    @property
    def form(self) -> Hashable:
        """The names of the sites, where each has a weight of its own."""
        if isinstance(self.beta, Mapping):
            return tuple(self.beta)
        return None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The weights."""
        if isinstance(self.beta, Mapping):
            return tuple(map(float, self.beta.values()))
        return (float(self.beta),)

    def with_numbers(self, numbers: Sequence[Tensor]) -> "scale_latents":
        """The same sites weighed by tensors."""
        if isinstance(self.beta, Mapping):
            return scale_latents(dict(zip(self.beta, numbers, strict=True)))
        return scale_latents(numbers[0])

    def __enter__(self) -> Self:
        self._met = set()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        result = super().__exit__(kind, error, traceback)
        if needs_common_scale(error):
            raise ValueError(f"The KL weights are {self.beta}. {COMMON_SCALE}") from error
        if kind is None and isinstance(self.beta, Mapping) and self._met:
            unknown = sorted(self.beta.keys() - self._met)
            if unknown:
                raise ValueError(f"scale_latents weighs {unknown}, but the latent sites are {sorted(self._met)}.")
        return result

    def _pyro_sample(self, msg: Message) -> None:
        target = evidence_for(msg)
        if target is not None:
            msg["scale"] = self._weight(target) * msg["scale"]
        if not is_latent(msg):
            return

        name = str(msg["name"])
        if isinstance(self.beta, Mapping):
            self._met.add(name)
            if is_auxiliary(msg):
                raise ValueError(
                    "Weights for single sites need a guide that samples each site by itself, "
                    f"but this one draws all of them from {name!r}; use one weight for all, or "
                    "AmortizedNormal."
                )
        msg["scale"] = self._weight(name) * msg["scale"]

    def _weight(self, name: str) -> Weight:
        return self.beta.get(name, 1.0) if isinstance(self.beta, Mapping) else self.beta
