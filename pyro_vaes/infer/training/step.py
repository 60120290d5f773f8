"""One training step: the loss per datum and its gradients."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vaes.programs import Pair, local_parameters

from ..bounds.bound import Bound, Loss, step_losses
from ..bounds.facts import facts_of, layers
from ..bounds.global_batch import global_batch
from ..bounds.host_sync import without_host_sync
from ..callback import Callback, Run
from ..checks.tables import Args
from ..engines import AdamUpdate, Compile, Engine, Outcome, SubStep, update_of
from ..optimizers import gradient_norm

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        run: The run, the parameters of its pair discovered. The gradients of its optimiser
            are zeroed before each step; its callbacks' handlers surround the loss, and
            they see the gradients.
        loss: The bound.
        fabric: Shares gradients and losses between processes.
        compile: Which engines may evaluate the losses.
        device: Where the parameters are.
    """

    def __init__(
        self,
        run: Run,
        loss: ELBO,
        fabric: "Fabric | None",
        compile: Compile = False,
        device: torch.device | None = None,
    ) -> None:
        self.run, self.loss = run, loss
        self.parameters = list(run.pair.parameters.values())
        self.num_data = 1.0
        self._bounds: list[Bound] = []
        for layer in layers(loss):
            if isinstance(layer, Bound):
                self._bounds.append(layer)

        self.engine = Engine(
            compile,
            self,
            run.pair.parameters,
            device or torch.device("cpu"),
            remaining=self._remaining,
            update=self._update,
            resumes=run.history.engine,
        )
        self._backward: Callable[[Args, float], Tensor] | None = None
        if fabric is not None:
            self._backward = _on_all_processes(run, loss, fabric)
            self.engine.turn_off("Fabric shares the gradients between processes")
        elif not hasattr(loss, "differentiable_loss"):
            self._backward = self._loss_and_grads
            self.engine.turn_off(f"{type(loss).__name__} has no differentiable loss")

    def __call__(self, args: Args, num_data: float) -> Tensor:
        """The loss per datum, detached; gradients are in place afterwards.

        Arguments:
            args: The programs' arguments.
            num_data: How many data the loss stands for.
        """
        run = self.run
        run.optimizer.zero_grad(set_to_none=True)
        self.num_data = num_data

        handlers = []
        for callback in run.callbacks:
            handler = callback.handler(run)
            if handler is not None:
                handlers.append(handler)

        with contextlib.ExitStack() as stack:
            if self._backward is None:
                sub_steps = self.engine.sub_steps(args, num_data, handlers, stack)
                value = self._one_by_one(sub_steps)
            else:
                for handler in handlers:
                    stack.enter_context(handler)
                value = self._backward(args, num_data)

        if self.outcome is None:
            self._show_gradients()
        return value

    @property
    def outcome(self) -> Outcome | None:
        """How the latest step went, where it moved the parameters as well."""
        return self.engine.outcome

    def _update(self) -> AdamUpdate | None:
        """The optimiser's step and clipping as a part of a graph, if they can be one."""
        changing = []
        for callback in self.run.callbacks:
            if type(callback).gradients is not Callback.gradients:
                changing.append(callback)

        if len(changing) > 1 or any(callback.max_norm is None for callback in changing):
            return None

        def max_norm() -> float | None:
            for callback in changing:
                return callback.max_norm
            return None

        return update_of(self.run.optimizer, max_norm, self.engine.device)

    def _show_gradients(self) -> None:
        for callback in self.run.callbacks:
            callback.gradients(self.run, self.parameters)

    def _one_by_one(self, sub_steps: Sequence[SubStep]) -> Tensor:
        """The losses of the bound in turn; most bounds have one."""
        optimizer = self.run.optimizer

        *earlier, last = sub_steps
        for sub_step in earlier:
            value = sub_step()
            if not torch.isfinite(value + gradient_norm(self.parameters)):
                return value  # the guard sees to it
            self._show_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return last()

    def _loss_and_grads(self, args: Args, num_data: float) -> Tensor:
        """A step of a bound that computes its gradients itself."""
        with around_a_loss():
            total = self.loss.loss_and_grads(self.run.pair.model, self.run.pair.guide, *args)

        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= num_data
        return (torch.as_tensor(total) / num_data).detach()

    def _remaining(self) -> int:
        """Steps to come; as many as there were where nobody knows."""
        run = self.run
        if not run.steps_per_epoch:
            return run.step
        return run.total_epochs * run.steps_per_epoch - run.step

    # the eager side of the engine

    def losses(self, args: Args) -> list[Loss]:
        """The losses of a step per datum, to be evaluated in turn."""
        pair, num_data = self.run.pair, self.num_data
        losses = step_losses(self.loss, pair.model, pair.guide, args)

        def per_datum(loss: Loss) -> Tensor:
            return loss() / num_data

        found: list[Loss] = []
        for loss in losses:
            found.append(functools.partial(per_datum, loss))
        return found

    def surroundings(self) -> contextlib.AbstractContextManager[None]:
        """What surrounds each of them."""
        return around_a_loss()

    def left_behind(self) -> tuple[Tensor, ...]:
        """What the bounds have left behind for the callbacks."""
        found: list[Tensor] = []
        for bound in self._bounds:
            found.extend(bound.left_behind())
        return tuple(found)

    def leave_behind(self, tensors: Sequence[Tensor]) -> None:
        """Let the bounds have it as if they had left it behind."""
        rest = list(tensors)
        for bound in self._bounds:
            rest = rest[bound.leave_behind(rest) :]

    def buffers(self) -> list[Tensor]:
        """The buffers that an evaluation may change."""
        found: dict[int, Tensor] = {}
        for module in self.run.pair.modules.values():
            for buffer in module.buffers():
                found[id(buffer)] = buffer
        return list(found.values())

    def roots(self) -> dict[str, object]:
        """The programs, the bound, and the parameters that belong to no module."""
        pair = self.run.pair
        programs = {"model": pair.model, "guide": pair.guide, "loss": self.loss}
        return programs | {"a param statement": pair.free}


def _differentiate(
    loss: Callable[[], Tensor],
    num_data: float,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    with around_a_loss():
        value = loss() / num_data
        backward(value)
    return value.detach()


def _on_all_processes(run: Run, loss: ELBO, fabric: "Fabric") -> Callable[[Args, float], Tensor]:
    """A backward pass whose gradients and loss are shared between processes."""
    module, _ = fabric.setup(_LossModule(run.pair, loss, fabric), run.optimizer)

    def backward(args: Args, num_data: float) -> Tensor:
        value = _differentiate(lambda: module(*args), num_data, fabric.backward)
        # all must agree on whether the step is good, and on what the history says
        mean = fabric.all_reduce(value, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    return backward


class _LossModule(nn.Module):
    """The loss as a module of the trained parameters, as Fabric's strategies want it.

    Raises:
        ValueError: The pair, the bound or the Fabric do not allow it.
    """

    def __init__(self, pair: Pair, loss: ELBO, fabric: "Fabric") -> None:
        super().__init__()
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

        reached = {n: p for n, p in pair.parameters.items() if n not in pair.unreached}
        foreign = [n for n, p in reached.items() if not isinstance(p, nn.Parameter)]
        if foreign:
            raise ValueError(
                "Several processes need parameters that are nn.Parameters of modules, but "
                f"{foreign[:3]} are pyro.param statements. Make the program a PyroModule with "
                "PyroParam attributes."
            )

        self.parts = nn.ParameterList(reached.values())
        self.pair, self.loss, self.fabric = pair, loss, fabric

    def forward(self, *args: object) -> Tensor:
        all_gather = None
        if self.fabric.world_size > 1:
            all_gather = self._all_gather
        with global_batch(all_gather):
            return self.loss.differentiable_loss(self.pair.model, self.pair.guide, *args)

    def _all_gather(self, rows: Tensor) -> Tensor:
        gathered = self.fabric.all_gather(rows, sync_grads=True)
        assert isinstance(gathered, Tensor)
        return gathered
