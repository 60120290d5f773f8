"""What our bounds share: a bound is one function, ``differentiable_loss``; loss and gradients follow."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.errors import UsageError, use_bound
from pyro_vaes.infer.handlers import is_latent
from pyro_vaes.programs.buffers import untouched_buffers

if TYPE_CHECKING:
    from pyro_vaes.infer.training.callbacks import Callback

__all__ = ["Bound", "Program", "Seen", "layers", "with_keywords", "without_keywords"]

Program = Callable[..., object]
Found = TypeVar("Found")


@dataclass(frozen=True)
class WithKeywords:
    """A program with the keywords of one call."""

    program: Program
    keywords: Mapping[str, object]

    def __call__(self, *args: object) -> object:
        return self.program(*args, **self.keywords)


def with_keywords(programs: Sequence[Program], keywords: Mapping[str, object]) -> Sequence[Program]:
    """The programs with these keywords; themselves where there are none."""
    return [WithKeywords(program, keywords) for program in programs] if keywords else programs


def without_keywords(program: Program) -> tuple[Program, Mapping[str, object]]:
    """The program itself and its keywords: what is kept of a call must hold none of them."""
    return (program.program, program.keywords) if isinstance(program, WithKeywords) else (program, {})


class Seen(Generic[Found]):
    """What a bound found at its first look at some programs; it looks again when others come.

    Programs with keywords are others where the names of the keywords are, whatever their values.

    Attributes:
        found: What it found last; None before.
    """

    def __init__(self) -> None:
        self.found: Found | None = None
        self._programs: list[tuple[object, ...]] | None = None

    def __getstate__(self) -> dict[str, None]:
        return dict.fromkeys(vars(self))  # a copy of a bound takes no programs along

    def of(self, *programs: Program, look: Callable[[], Found]) -> Found:
        """What ``look`` found for these programs."""
        known = [(program, *keywords) for program, keywords in map(without_keywords, programs)]
        if self.found is None or self._programs != known:
            with untouched_buffers():  # a look is no step: the statistics of a batch norm stay as they are
                self.found, self._programs = look(), known
        return self.found


class Bound(ELBO):
    """A Pyro ELBO defined by its differentiable loss, the negative bound summed over the batch.

    Keywords of a loss are those of both programs, as for Pyro's own bounds.

    Attributes:
        min_rows: Fewest rows of a batch for which it is defined. Where there must be several, it is a function of them
            together, and :func:`~pyro_vaes.infer.fit` leaves the last, short batch of an epoch out.
    """

    min_rows = 1

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """The negative bound in nats, summed over the data, with gradients for model and guide."""

    def sub_losses(self, model: Program, guide: Program, *args: object) -> list[Callable[[], Tensor]]:
        """The losses of one training step, to be computed, differentiated and stepped one after the other."""
        return [lambda: self.differentiable_loss(model, guide, *args)]

    def callbacks(self) -> Sequence["Callback"]:
        """What the bound needs to happen between the steps of every run of :func:`~pyro_vaes.infer.fit`."""
        return ()

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        with torch.no_grad():
            return self.differentiable_loss(*with_keywords((model, guide), kwargs), *args).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        loss = self.differentiable_loss(*with_keywords((model, guide), kwargs), *args)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _refuse_score_function(self, guide_trace: Trace) -> None:
        """Raise where a site of the guide is drawn without reparameterisation: the gradient would be biased."""
        if not torch.is_grad_enabled():
            return
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and not getattr(site["fn"], "has_rsample", True):
                raise UsageError(
                    f"{type(self).__name__} needs reparameterised draws, but the guide's site {name!r} "
                    f"({type(site['fn']).__name__}) has none, so gradients would be wrong.",
                    use_bound(detail=", which adds the score function"),
                    use_bound("StratifiedMixture_ELBO", " for a mixture"),
                )

    def _refuse_missing(self, guide_trace: Trace, model_trace: Trace) -> None:
        """Raise where the guide lacks a latent site of the model."""
        missing = [n for n, s in model_trace.nodes.items() if is_latent(s) and n not in guide_trace]
        if missing:
            raise ValueError(
                f"The guide does not draw the model's latent sites {missing}. Draw them in the guide, or sum a "
                "discrete one out with TraceEnum_ELBO?"
            )

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[Trace, Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def layers(bound: ELBO) -> Iterator[ELBO]:
    """A bound, and the bounds that it is built on, from the outside inwards."""
    layer: ELBO | None = bound
    while layer is not None:
        yield layer
        layer = getattr(layer, "base", None)
