"""One training step: the loss per datum, its gradients, and an optimiser for them."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vaes.infer.bounds.bound import Bound
from pyro_vaes.infer.bounds.global_batch import AllGather, global_batch
from pyro_vaes.infer.training.callbacks import Callback, Run
from pyro_vaes.infer.training.evaluation import NumData
from pyro_vaes.programs.pair import Pair

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["MakeOptimizer", "Step", "make_optimizer"]

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class Step:
    """One step: loss per datum, backward, callbacks' gradients; the optimiser is the guard's.

    Arguments:
        pair: The pair, its parameters discovered.
        loss: The bound.
        optimizer: Its gradients are zeroed before each step.
        callbacks: Their handlers surround the loss, and they see the gradients.
        fabric: Shares gradients and losses between processes.
        num_data: How many data the loss of a batch stands for.
    """

    def __init__(
        self,
        pair: Pair,
        loss: ELBO,
        optimizer: Optimizer,
        callbacks: Sequence[Callback],
        fabric: "Fabric | None",
        num_data: NumData,
    ) -> None:
        self.pair, self.loss, self.optimizer, self.callbacks, self.fabric = pair, loss, optimizer, callbacks, fabric
        self.parameters = list(pair.parameters.values())
        self.num_data = num_data
        self.module: nn.Module | None = None
        if fabric is not None:
            self.module, _ = fabric.setup(_loss_module(pair, loss, fabric), optimizer)

    def __call__(self, run: Run, args: tuple[object, ...]) -> Tensor:
        """The loss per datum, detached; gradients are in place afterwards."""
        self._clear_gradients()
        num_data = self.num_data.of(args)
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                handler = callback.handler(run)
                if handler is not None:
                    stack.enter_context(handler)
            value = self._backward(run, args, num_data)
        for callback in self.callbacks:
            callback.gradients(run, self.parameters)
        return value

    def _clear_gradients(self) -> None:
        """The optimiser's ``zero_grad`` without its hooks for profilers, 1 % of the time of a small step."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _backward(self, run: Run, args: tuple[object, ...], num_data: int) -> Tensor:
        pair = self.pair
        if self.module is not None:
            assert self.fabric is not None
            value = self.module(*args) / num_data
            self.fabric.backward(value)
            # all processes must agree on whether the step is good, and on what the history says
            return cast(Tensor, self.fabric.all_reduce(value.detach(), reduce_op="mean"))
        if isinstance(self.loss, Bound):
            return self._sub_steps(run, self.loss.sub_losses(pair.model, pair.guide, *args), num_data)
        if hasattr(self.loss, "differentiable_loss"):
            value = self.loss.differentiable_loss(pair.model, pair.guide, *args) / num_data
            value.backward()
            return value.detach()
        value = torch.as_tensor(self.loss.loss_and_grads(pair.model, pair.guide, *args)) / num_data
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= num_data
        return value.detach()

    def _sub_steps(self, run: Run, losses: Sequence[Callable[[], Tensor]], num_data: int) -> Tensor:
        """The losses of one step in turn; all but the last are stepped here, up to one that is not finite."""
        *earlier, last = losses
        for loss in earlier:
            value = loss() / num_data
            value.backward()
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            if not torch.isfinite(value.detach() + torch.nn.utils.get_total_norm(gradients)):
                return value.detach()  # the guard sees to it
            for callback in self.callbacks:
                callback.gradients(run, self.parameters)
            self.optimizer.step()
            self._clear_gradients()
        value = last() / num_data
        value.backward()
        return value.detach()


class _LossModule(nn.Module):
    """The loss as a module that holds the trained parameters, as Fabric's strategies want it."""

    def __init__(
        self, pair: Pair, loss: ELBO, parameters: Iterable[nn.Parameter], all_gather: AllGather | None
    ) -> None:
        super().__init__()
        self.parts = nn.ParameterList(parameters)
        self.pair, self.loss, self.all_gather = pair, loss, all_gather

    def forward(self, *args: object) -> Tensor:
        with global_batch(self.all_gather):
            return self.loss.differentiable_loss(self.pair.model, self.pair.guide, *args)


def _loss_module(pair: Pair, loss: ELBO, fabric: "Fabric") -> _LossModule:
    """What Fabric shares out, if this pair, bound and Fabric allow it."""
    if not hasattr(loss, "differentiable_loss"):
        raise ValueError(
            f"Fabric needs a bound with a differentiable loss, but {type(loss).__name__} has none; use Trace_ELBO?"
        )
    if getattr(loss, "schedule", None) == "sequential":
        raise ValueError("Fabric takes one step per batch; use schedule='simultaneous' with several processes.")
    if getattr(fabric.strategy.precision, "scaler", None) is not None:
        raise ValueError(
            "Fabric's precision '16-mixed' scales the loss, which clipping and the NaN policy would have to undo. Use "
            "precision='bf16-mixed' or '32-true'."
        )
    reached = {n: p for n, p in pair.parameters.items() if n not in pair.unreached}
    foreign = [n for n, p in reached.items() if not isinstance(p, nn.Parameter)]
    if foreign:
        raise ValueError(
            f"Several processes need parameters that are nn.Parameters of modules, but {foreign[:3]} are pyro.param "
            "statements. Make the program a PyroModule with PyroParam attributes."
        )
    all_gather = functools.partial(fabric.all_gather, sync_grads=True) if fabric.world_size > 1 else None
    return _LossModule(pair, loss, cast(list[nn.Parameter], list(reached.values())), cast(AllGather, all_gather))


def make_optimizer(optim: MakeOptimizer | Optimizer | PyroOptim | None, parameters: list[Tensor]) -> Optimizer:
    """A torch optimiser of the parameters, from any of the things that ``fit`` takes for one."""
    if optim is None:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.Adam(parameters, lr=1e-3, fused=fused)
    if isinstance(optim, PyroOptim):
        if callable(optim.pt_optim_args):
            raise ValueError(
                "Pyro optimisers with per-parameter arguments are for SVI; pass a function of the parameters."
            )
        return optim.pt_optim_constructor(parameters, **optim.pt_optim_args)
    if isinstance(optim, Optimizer):
        held = {id(p) for group in optim.param_groups for p in group["params"]}
        missing = sum(id(p) not in held for p in parameters)
        if missing:
            raise ValueError(
                f"The optimiser lacks {missing} of the {len(parameters)} parameters of this model and guide. Pass a "
                "function of the parameters instead: functools.partial(torch.optim.Adam, lr=1e-3)."
            )
        return optim
    made = optim(parameters) if callable(optim) else optim
    if not isinstance(made, Optimizer):
        what = f"optim returned a {type(made).__name__}" if callable(optim) else f"optim is a {type(optim).__name__}"
        raise ValueError(
            f"{what}; a function of the parameters that returns a torch optimiser is wanted, such as "
            "functools.partial(torch.optim.Adam, lr=1e-3), or a torch or Pyro optimiser."
        )
    return made
