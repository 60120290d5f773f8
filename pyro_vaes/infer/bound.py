"""What our bounds share: a bound is one function, ``differentiable_loss``; loss and gradients follow."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor

__all__ = ["Bound", "Program"]

Program = Callable[..., object]


class Bound(ELBO):
    """A Pyro ELBO defined by its differentiable loss, the negative bound summed over the batch."""

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: object) -> Tensor:
        """The negative bound in nats, summed over the data, with gradients for model and guide."""

    def loss(self, model: Program, guide: Program, *args: object) -> float:
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: object) -> float:
        loss = self.differentiable_loss(model, guide, *args)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[Trace, Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
