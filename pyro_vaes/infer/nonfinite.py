"""What to do about losses and gradients that are not finite, without a host synchronisation in every step."""

import copy
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from pyro_vaes.infer.callbacks import Run
from pyro_vaes.infer.check import site_table

__all__ = ["Guard", "NonFiniteError", "OnNaN"]

OnNaN = Literal["raise", "skip", "rollback"]
MAX_IN_A_ROW = 20  # steps that may be skipped one after the other
MAX_ROLLBACKS = 5


class NonFiniteError(FloatingPointError):
    """A loss or a gradient became NaN or infinite; the message shows every site."""


class Guard:
    """Steps the optimiser where loss and gradients are finite, and keeps the epoch's sums on the device.

    On the CPU each step is looked at before it is taken. On other devices an optimiser that knows ``found_inf`` (the
    fused ones) skips bad steps by itself and the flags are read every 50 steps.
    """

    def __init__(self, run: Run, on_nan: OnNaN, device: torch.device) -> None:
        if on_nan not in get_args(OnNaN):
            raise ValueError(f"on_nan must be one of {get_args(OnNaN)}, but got {on_nan!r}.")
        self.run, self.on_nan, self.device = run, on_nan, device
        optimizer = run.optimizer
        self.deferred = device.type != "cpu" and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        self.interval = 50 if self.deferred else 1
        self.in_a_row = self.rollbacks = 0
        self.parameters = list(run.pair.parameters.values())

    def start_epoch(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64 if self.device.type == "cpu" else None, device=self.device)
        self.norms = torch.zeros_like(self.total)
        self.rows = self.steps = 0
        self.pending: list[tuple[tuple[object, ...], Tensor, Tensor]] = []
        if self.on_nan == "rollback":
            self.snapshot = (
                {n: t.clone() for n, t in self.run.pair.state().items()},
                copy.deepcopy(self.run.optimizer.state_dict()),
            )

    def step(self, args: tuple[object, ...], value: Tensor, rows: int) -> None:
        """Take the optimiser's step unless the loss or a gradient is not finite."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=self.device)
        good = torch.isfinite(value + norm)
        optimizer = self.run.optimizer
        if self.deferred:
            optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.step()
            weight = good.to(value.dtype)
            self.total += rows * weight * torch.nan_to_num(value)
            self.norms += weight * torch.nan_to_num(norm)
            self.pending.append((args, good, value))
            if len(self.pending) >= self.interval:
                self._look()
        elif bool(good):
            optimizer.step()
            self.total += rows * value
            self.norms += norm
            self.in_a_row = 0
        else:
            self._act(args, value)
            return
        self.rows += rows
        self.steps += 1

    def finish_epoch(self) -> tuple[tuple[float, float], float]:
        """(Sum of losses, number of rows) of the epoch and the mean gradient norm."""
        self._look()
        return (self.total.item(), float(max(self.rows, 1))), self.norms.item() / max(self.steps, 1)

    def _look(self) -> None:
        """Read the flags of the deferred steps: the one host synchronisation of many steps."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        flags = torch.stack([good for _, good, _ in pending]).tolist()
        for (args, _, value), good in zip(pending, flags, strict=True):
            if good:
                self.in_a_row = 0
            else:
                self.rows -= next((len(a) for a in args if isinstance(a, Tensor) and a.dim()), 1)
                self.steps -= 1
                self._act(args, value)

    def _act(self, args: tuple[object, ...], value: Tensor) -> None:
        run = self.run
        run.history.skipped += 1
        self.in_a_row += 1
        if self.on_nan == "rollback" and self.rollbacks < MAX_ROLLBACKS:
            self.rollbacks += 1
            state, optimizer_state = self.snapshot
            run.pair.load_state(state)
            run.optimizer.load_state_dict(copy.deepcopy(optimizer_state))
            for group in run.optimizer.param_groups:
                group["lr"] = cast(float, group["lr"]) * 0.5**self.rollbacks
            return
        if self.on_nan == "skip" and self.in_a_row < MAX_IN_A_ROW:
            return
        tried = {
            "raise": "",
            "skip": f" {self.in_a_row} steps in a row were skipped.",
            "rollback": f" {self.rollbacks} rollbacks did not help.",
        }[self.on_nan]
        gradients = [n for n, p in run.pair.parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
        raise NonFiniteError(
            f"At step {run.step} the loss is {value.item():g} nats per datum and {len(gradients)} of "
            f"{len(run.pair.parameters)} gradients are not finite ({', '.join(gradients[:4])}).{tried} The sites on that batch:\n"
            f"{site_table(run.pair, args)}\nUsual cures: a scale with a floor, ClipGradNorm, a smaller learning rate, KLWarmup, "
            "or on_nan='skip'."
        )
