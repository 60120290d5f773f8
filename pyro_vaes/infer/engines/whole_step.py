"""A whole training step as one compiled call: loss, gradients, clipping, norm, optimiser."""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .compiler import compile_graph
from .loss_graph import Evaluated, LossGraph, record
from .numbers import as_tensors
from .updates import AdamUpdate, Outcome


class Stepped(NamedTuple):
    """A step that has been taken: its loss, its gradients as clipped, and how it went."""

    evaluated: Evaluated
    outcome: Outcome


class WholeStep:
    """One compiled call that takes a step.

    Arguments:
        graph: The loss and its gradients.
        tensors: The batch's tensors and the handlers' numbers.
        update: The optimiser.
        parameters: What the loss was differentiated by.

    Raises:
        CannotCapture: The step cannot be compiled.
    """

    def __init__(
        self,
        graph: LossGraph,
        tensors: Sequence[Tensor],
        update: AdamUpdate,
        parameters: Sequence[Tensor],
    ) -> None:
        self.graph, self.update = graph, update
        self.moved = [parameters[i] for i in graph.reached]
        self.form = update.form()
        self.device = parameters[0].device
        sizes = len(tensors), len(update.numbers())

        def step(*given: Tensor) -> list[Tensor]:
            batch, rest = given[: sizes[0]], given[sizes[0] :]
            numbers, state = rest[: sizes[1]], rest[sizes[1] :]
            value, *found = graph.module(*batch)

            num = len(self.moved)
            gradients, left = found[:num], found[num:]
            moved = update.apply(value, self.moved, gradients, numbers, state)
            clipped, (norm, good) = moved
            return [value, norm, good, *clipped, *left]

        inputs = self._inputs(tensors)
        in_place = self.device.type == "cuda"  # a CUDA graph knows places in memory
        self.kept = inputs[sum(sizes) :] if in_place else None
        with untouched([*self.moved, *inputs[sum(sizes) :]]), torch.no_grad():
            self.run: Callable[..., Sequence[Tensor]] = compile_graph(
                record(step, inputs), inputs, num_fixed=len(inputs) - sum(sizes)
            )

    def holds(self) -> bool:
        """Whether the optimiser is what the graph has of it: its fixed numbers, its state."""
        if self.update.form() != self.form:
            return False
        state = self.update.state(self.moved)
        return self.kept is None or all(map(operator.is_, state, self.kept))

    def __call__(self, tensors: Sequence[Tensor]) -> Stepped:
        """Take the step."""
        with torch.no_grad():
            value, norm, good, *rest = self.run(*self._inputs(tensors))
        evaluated = self.graph.sorted_out(value, rest)
        _tell_schedules(self.update.optimizer)
        return Stepped(evaluated, Outcome(norm, good))

    def state(self) -> list[Tensor]:
        """What the step moves."""
        return [*self.moved, *self.update.state(self.moved)]

    def _inputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        numbers = as_tensors(self.update.numbers(), self.device)
        return [*tensors, *numbers, *self.update.state(self.moved)]


class untouched:
    """Tensors that are put back afterwards.

    Arguments:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    def __enter__(self) -> None:
        self.values = [tensor.detach().clone() for tensor in self.tensors]

    def __exit__(self, *_: object) -> None:
        self.put_back()

    def put_back(self) -> None:
        """Give the tensors their old values."""
        with torch.no_grad():
            for tensor, value in zip(self.tensors, self.values, strict=True):
                tensor.copy_(value)


def _tell_schedules(optimizer: torch.optim.Optimizer) -> None:
    """Learning-rate schedules warn where they are moved before the optimiser has stepped."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        vars(optimizer)["_opt_called"] = True
