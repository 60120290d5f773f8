"""What our bounds share: a bound is one function, and loss and gradients follow."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.errors import UsageError, use_bound
from pyro_vaes.programs import (
    DRAWN,
    Findings,
    PairTraces,
    Program,
    bind_keywords,
    run_pair,
    sites,
)

if TYPE_CHECKING:
    from ..callback import Callback


Args = tuple[object, ...]
Loss = Callable[[], Tensor]
B = TypeVar("B")
T = TypeVar("T")
Find = Callable[[B, Program, Program, Args], T]


class Bound(ELBO):
    """A Pyro ELBO defined by one method, :meth:`negative_bound`.

    Keywords of a loss are those of both programs, as for Pyro's own bounds; they are bound
    to the programs before the methods that a subclass overrides are called.

    A subclass states facts (see :class:`~pyro_vaes.infer.BoundFacts`) as class attributes,
    such as ``min_rows = 2``. What it does not state is that of the bounds that it holds in
    attributes, or the default.
    """

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """The negative bound in nats, summed over the data, with gradients for both programs."""
        raise NotImplementedError(
            f"{type(self).__name__} defines no bound: override negative_bound(self, model, "
            "guide, *args), the negative bound in nats, summed over the data."
        )

    def negative_value(self, model: Program, guide: Program, *args: object) -> float:
        """The same number without gradients, for evaluation."""
        return self.negative_bound(model, guide, *args).item()

    def sub_losses(self, model: Program, guide: Program, *args: object) -> list[Loss]:
        """The losses of one training step, to be differentiated and stepped in turn."""
        return [lambda: self.differentiable_loss(model, guide, *args)]

    def left_behind(self) -> tuple[Tensor, ...]:
        """The tensors, beside the loss, that the latest evaluation has left for the callbacks.

        Recorded graphs of the loss have them as outputs.
        """
        return ()

    def leave_behind(self, tensors: Sequence[Tensor]) -> int:
        """Take up as many of these in place of what an evaluation would have left behind.

        Returns:
            How many were taken.
        """
        return 0

    def callbacks(self) -> Sequence["Callback"]:
        """What the bound needs to happen between the steps of every run of ``fit``."""
        return ()

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """The negative bound in nats, summed over the data, with gradients."""
        model, guide = bind_keywords(model, kwargs), bind_keywords(guide, kwargs)
        return self.negative_bound(model, guide, *args)

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """The negative bound in nats, summed over the data, as a number."""
        model, guide = bind_keywords(model, kwargs), bind_keywords(guide, kwargs)
        with torch.no_grad():
            return self.negative_value(model, guide, *args)

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """The loss as a number; its gradients are added to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _refuse_score_function(self, guide_trace: Trace) -> None:
        """Raise where a draw of the guide carries no gradient: the bound's would be biased."""
        if not torch.is_grad_enabled():
            return
        for name, site in sites(guide_trace, DRAWN).items():
            if not getattr(site["fn"], "has_rsample", True):
                raise UsageError(
                    f"{type(self).__name__} needs reparameterised draws, but the guide's "
                    f"site {name!r} ({type(site['fn']).__name__}) has none, so gradients "
                    "would be wrong.",
                    use_bound(detail=", which adds the score function"),
                    use_bound("StratifiedMixture_ELBO", " for a mixture"),
                )

    def _refuse_missing(self, guide_trace: Trace, model_trace: Trace) -> None:
        """Raise where the guide lacks a latent site of the model."""
        latents = sites(model_trace, DRAWN)
        missing = [name for name in latents if name not in guide_trace]
        if missing:
            raise ValueError(
                f"The guide does not draw the model's latent sites {missing}. Draw them in "
                "the guide, or sum a discrete one out with TraceEnum_ELBO?"
            )

    def _run_reparameterised(self, model: Program, guide: Program, args: Args) -> PairTraces:
        """Run a pair whose guide draws every latent site of the model, with gradients."""
        traces = run_pair(model, guide, args)
        self._refuse_score_function(traces.guide)
        self._refuse_missing(*traces)
        return traces

    # what Pyro's ELBO calls for each particle
    _get_trace = Trace_ELBO._get_trace


def found_once(find: Find[B, T]) -> Find[B, T]:
    """A method that looks at a pair, once for each structure of the arguments.

    What ``_plate`` has found is kept in the attribute ``_found_plate``.
    """

    @functools.wraps(find)
    def found(self: B, model: Program, guide: Program, args: Args) -> T:
        findings = vars(self).setdefault(f"_found{find.__name__}", Findings[T]())
        return findings.of((model, guide), args, lambda: find(self, model, guide, args))

    return found


def step_losses(bound: ELBO, model: Program, guide: Program, args: Args) -> list[Loss]:
    """The losses of one training step of any bound with a differentiable loss."""
    if isinstance(bound, Bound):
        return bound.sub_losses(model, guide, *args)
    return [lambda: bound.differentiable_loss(model, guide, *args)]
