"""What to do about losses and gradients that are not finite.

It needs no host synchronisation in every step.
"""

import copy
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_vaes.errors import CurableError, Cure

from ..callback import Run
from ..checks.tables import Args, site_table
from ..engines import Outcome
from ..optimizers import (
    gradient_norm,
    halve_learning_rate,
    knows_found_inf,
    release_found_inf,
    step_where,
)

OnNaN = Literal["raise", "skip", "rollback"]
MAX_IN_A_ROW = 20  # steps that may be skipped one after the other
MAX_ROLLBACKS = 5


class NonFiniteError(CurableError, FloatingPointError):
    """A loss or a gradient became NaN or infinite; the message shows every site."""


class _Deferred(NamedTuple):
    """A step of which it is not known yet whether it was good."""

    args: Args
    good: Tensor
    value: Tensor
    size: float


class Guard:
    """Steps the optimiser where loss and gradients are finite.

    It keeps the epoch's sums on the device. On the CPU each step is looked at before it is
    taken. On other devices an optimiser that knows ``found_inf`` (the fused ones) skips bad
    steps by itself and the flags are read every 50 steps.

    Arguments:
        run: The run whose optimiser is stepped.
        on_nan: What to do about a bad step.
        device: Where the losses are.
    """

    def __init__(self, run: Run, on_nan: OnNaN, device: torch.device) -> None:
        if on_nan not in get_args(OnNaN):
            raise ValueError(f"on_nan must be one of {get_args(OnNaN)}, but got {on_nan!r}.")
        self.run, self.on_nan, self.device = run, on_nan, device
        self.deferred = knows_found_inf(run.optimizer, device)
        self.interval = 50
        self.in_a_row = self.rollbacks = 0
        self.parameters = list(run.pair.parameters.values())

    def start_epoch(self) -> None:
        dtype = torch.float64 if self.device.type == "cpu" else None
        self.total = torch.zeros((), dtype=dtype, device=self.device)
        self.norms = torch.zeros_like(self.total)
        self.rows, self.steps = 0.0, 0
        self.pending: list[_Deferred] = []
        if self.on_nan != "raise":
            self._take_snapshot()

    def state(self) -> dict[str, int]:
        """What a resumed run must know."""
        return {"in_a_row": self.in_a_row, "rollbacks": self.rollbacks}

    def load_state(self, state: Mapping[str, int]) -> None:
        self.in_a_row, self.rollbacks = state["in_a_row"], state["rollbacks"]

    def _take_snapshot(self) -> None:
        self.weights = self.run.pair.snapshot()
        if self.on_nan == "rollback":
            self.optimizer_state = copy.deepcopy(self.run.optimizer.state_dict())
            for callback in self.run.callbacks:
                callback.kept(self.run)

    def step(
        self,
        args: Args,
        value: Tensor,
        size: float,
        outcome: Outcome | None = None,
    ) -> None:
        """Take the optimiser's step unless the loss or a gradient is not finite.

        Arguments:
            args: The batch, of which the error message shows the sites.
            value: The loss per datum.
            size: How many data the batch holds.
            outcome: How it went, where the step has been taken already.
        """
        if outcome is None:
            norm = gradient_norm(self.parameters).to(self.device)
            good = torch.isfinite(value + norm)
        else:
            norm, good = outcome

        if self.deferred:
            if outcome is None:
                step_where(self.run.optimizer, good)

            zero = torch.zeros_like(value)
            counted = torch.where(good, value, zero), torch.where(good, norm, zero)
            self._count(*counted, size)
            self.pending.append(_Deferred(args, good, value, size))
            if len(self.pending) >= self.interval:
                self._read_flags()

        elif bool(good):
            if outcome is None:
                self.run.optimizer.step()
            self._count(value, norm, size)
            self.in_a_row = 0
        else:
            self._act(args, value)

    def finish_epoch(self) -> tuple[Tensor, float]:
        """The epoch's sum of losses and number of rows, ``(2,)``; its mean gradient norm."""
        self._read_flags()
        sums = torch.tensor([self.total.item(), self.rows or 1.0], dtype=torch.float64)
        return sums, self.norms.item() / max(self.steps, 1)

    def release(self) -> None:
        """Take the flag back from the optimiser."""
        release_found_inf(self.run.optimizer)

    def _count(self, value: Tensor, norm: Tensor, rows: float) -> None:
        self.total += rows * value
        self.norms += norm
        self.rows += rows
        self.steps += 1

    def _read_flags(self) -> None:
        """Read the flags of the deferred steps: the one host synchronisation of many steps."""
        if not self.pending:
            return

        pending, self.pending = self.pending, []
        flags = torch.stack([step.good for step in pending]).tolist()
        for step, good in zip(pending, flags, strict=True):
            if good:
                self.in_a_row = 0
            else:
                self.rows -= step.size
                self.steps -= 1
                self._act(step.args, step.value)

    def _act(self, args: Args, value: Tensor) -> None:
        run = self.run
        run.history.skipped += 1
        self.in_a_row += 1

        if self.on_nan == "rollback" and self.rollbacks < MAX_ROLLBACKS:
            self._roll_back()
            return
        if self.on_nan == "skip" and self.in_a_row < MAX_IN_A_ROW:
            self._mend_buffers()
            return

        tried = {
            "raise": "",
            "skip": f" {self.in_a_row} steps in a row were skipped.",
            "rollback": f" {self.rollbacks} rollbacks did not help.",
        }
        parameters = run.pair.parameters
        bad = []
        for name, parameter in parameters.items():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                bad.append(name)
        named = f" ({', '.join(bad[:4])})" if bad else ""

        raise NonFiniteError(
            f"At step {run.step} the loss is {value.item():g} nats per datum and {len(bad)} of "
            f"{len(parameters)} gradients are not finite{named}.{tried[self.on_nan]} The "
            f"sites on that batch:\n{site_table(run.pair, args)}",
            Cure("scale", words="put a floor under the scale"),
            Cure("callbacks", "ClipGradNorm", words="add the callback ClipGradNorm"),
            Cure("callbacks", "KLWarmup", words="add the callback KLWarmup"),
            Cure("optim", words="choose a smaller learning rate"),
            Cure("on_nan", "skip"),
        )

    def _roll_back(self) -> None:
        """Back to the epoch's start at half the learning rate; then at a quarter, and so on."""
        run = self.run
        self.rollbacks += 1
        run.pair.load_state(self.weights)
        run.optimizer.load_state_dict(copy.deepcopy(self.optimizer_state))
        halve_learning_rate(run.optimizer)
        for callback in run.callbacks:
            callback.rolled_back(run)
        self._take_snapshot()

    def _mend_buffers(self) -> None:
        """Give running statistics that a skipped batch has made NaN their old values."""
        for name, tensor in self.run.pair.state().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                tensor.copy_(self.weights[name])
