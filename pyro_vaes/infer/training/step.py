"""One training step: the loss per datum and its gradients."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vaes.infer.bounds.bound import Loss, step_losses
from pyro_vaes.infer.bounds.facts import facts_of
from pyro_vaes.infer.bounds.global_batch import AllGather, global_batch
from pyro_vaes.infer.bounds.host_sync import without_host_sync
from pyro_vaes.infer.callback import Callback, Run
from pyro_vaes.programs import Pair, local_parameters

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Step", "around_a_loss"]

Args = tuple[object, ...]


@contextlib.contextmanager
def around_a_loss() -> Iterator[None]:
    """What surrounds the loss of a step, and the loss alone: callbacks run outside of it.

    Programs use their modules' own parameters, Pyro's checks of values are off, and its
    bounds leave their numbers on the device.
    """
    with pyro.validation_enabled(False), local_parameters(), without_host_sync():
        yield


class Step:
    """One step: loss per datum, backward, callbacks' gradients.

    The optimiser's step that follows is the guard's.

    Arguments:
        pair: The pair, its parameters discovered.
        loss: The bound.
        optimizer: Its gradients are zeroed before each step.
        callbacks: Their handlers surround the loss, and they see the gradients.
        fabric: Shares gradients and losses between processes.
    """

    def __init__(
        self,
        pair: Pair,
        loss: ELBO,
        optimizer: Optimizer,
        callbacks: Sequence[Callback],
        fabric: "Fabric | None",
    ) -> None:
        self.pair, self.loss, self.optimizer = pair, loss, optimizer
        self.callbacks, self.fabric = callbacks, fabric
        self.parameters = list(pair.parameters.values())
        self.differentiable = hasattr(loss, "differentiable_loss")

        self.module: nn.Module | None = None
        if fabric is not None:
            module = _loss_module(pair, loss, fabric)
            self.module, _ = fabric.setup(module, optimizer)

    def __call__(self, run: Run, args: Args, num_data: int) -> Tensor:
        """The loss per datum, detached; gradients are in place afterwards.

        Arguments:
            run: The run, for the callbacks.
            args: The programs' arguments.
            num_data: How many data the loss stands for.
        """
        self.optimizer.zero_grad(set_to_none=True)

        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                handler = callback.handler(run)
                if handler is not None:
                    stack.enter_context(handler)
            value = self._backward(run, args, num_data)

        for callback in self.callbacks:
            callback.gradients(run, self.parameters)
        return value

    def _backward(self, run: Run, args: Args, num_data: int) -> Tensor:
        if self.fabric is not None:
            return self._backward_on_all(self.fabric, args, num_data)
        if not self.differentiable:
            return self._loss_and_grads(args, num_data)

        *earlier, last = step_losses(self.loss, self.pair.model, self.pair.guide, args)
        for loss in earlier:
            value = self._differentiate(loss, num_data)
            if not self._is_finite(value):
                return value  # the guard sees to it
            for callback in self.callbacks:
                callback.gradients(run, self.parameters)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return self._differentiate(last, num_data)

    def _differentiate(self, loss: Loss, num_data: int) -> Tensor:
        with around_a_loss():
            value = loss() / num_data
            value.backward()
        return value.detach()

    def _is_finite(self, value: Tensor) -> bool:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return bool(torch.isfinite(value + norm))

    def _loss_and_grads(self, args: Args, num_data: int) -> Tensor:
        """A step of a bound that computes its gradients itself."""
        with around_a_loss():
            total = self.loss.loss_and_grads(self.pair.model, self.pair.guide, *args)

        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= num_data
        return (torch.as_tensor(total) / num_data).detach()

    def _backward_on_all(self, fabric: "Fabric", args: Args, num_data: int) -> Tensor:
        """A step whose gradients and loss are shared between processes."""
        assert self.module is not None
        with around_a_loss():
            value = self.module(*args) / num_data
            fabric.backward(value)

        # all must agree on whether the step is good, and on what the history says
        mean = fabric.all_reduce(value.detach(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean


class _LossModule(nn.Module):
    """The loss as a module of the trained parameters, as Fabric's strategies want it."""

    def __init__(
        self,
        pair: Pair,
        loss: ELBO,
        parameters: Iterable[nn.Parameter],
        all_gather: AllGather | None,
    ) -> None:
        super().__init__()
        self.parts = nn.ParameterList(parameters)
        self.pair, self.loss, self.all_gather = pair, loss, all_gather

    def forward(self, *args: object) -> Tensor:
        with global_batch(self.all_gather):
            return self.loss.differentiable_loss(self.pair.model, self.pair.guide, *args)


def _loss_module(pair: Pair, loss: ELBO, fabric: "Fabric") -> _LossModule:
    """What Fabric shares out, if this pair, bound and Fabric allow it.

    Raises:
        ValueError: They do not.
    """
    if not hasattr(loss, "differentiable_loss"):
        raise ValueError(
            f"Fabric needs a bound with a differentiable loss, but {type(loss).__name__} has none; use Trace_ELBO?"
        )
    if not facts_of(loss).one_loss:
        raise ValueError("Fabric takes one step per batch; use schedule='simultaneous' with several processes.")
    if getattr(fabric.strategy.precision, "scaler", None) is not None:
        raise ValueError(
            "Fabric's precision '16-mixed' scales the loss, which clipping and the NaN policy "
            "would have to undo. Use precision='bf16-mixed' or '32-true'."
        )

    reached, foreign = [], []
    for name, parameter in pair.parameters.items():
        if name in pair.unreached:
            continue
        if isinstance(parameter, nn.Parameter):
            reached.append(parameter)
        else:
            foreign.append(name)
    if foreign:
        raise ValueError(
            "Several processes need parameters that are nn.Parameters of modules, but "
            f"{foreign[:3]} are pyro.param statements. Make the program a PyroModule with "
            "PyroParam attributes."
        )

    def all_gather(rows: Tensor) -> Tensor:
        gathered = fabric.all_gather(rows, sync_grads=True)
        assert isinstance(gathered, Tensor)
        return gathered

    if fabric.world_size == 1:
        return _LossModule(pair, loss, reached, None)
    return _LossModule(pair, loss, reached, all_gather)
