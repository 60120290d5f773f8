"""A training run as data: what was asked for, what it came to, and what is under way."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pyro.infer import ELBO

from pyro_vaes.programs import Pair, UnitCounter

from ..batches.batches import Batches
from ..callback import Callback, Run
from ..engines import Compile, as_compile
from ..optimizers import OptimizerLike
from ..whole_numbers import whole_number
from .nonfinite import Guard, OnNaN
from .step import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Plan:
    """How to train; the arguments of :func:`~pyro_vaes.infer.fit` but programs and data.

    Raises:
        ValueError: An argument is of no use.
    """

    loss: ELBO | None
    optim: OptimizerLike | None
    epochs: int
    batch_size: int
    callbacks: Sequence[Callback]
    seed: int | None
    device: torch.device | str | None
    checkpoint: str | pathlib.Path | None
    resume: bool
    on_nan: OnNaN
    drop_last: bool | None
    fabric: "Fabric | None"
    compile: Compile
    unit: str | None

    def __post_init__(self) -> None:
        if whole_number("epochs", self.epochs) < 0:
            raise ValueError(f"epochs must be at least 0, but got {self.epochs}.")
        as_compile(self.compile)
        if self.resume and self.checkpoint is None:
            raise ValueError("resume=True needs the directory to resume from: pass checkpoint='runs/my_run'.")

    @property
    def rank(self) -> int:
        """Number of this process."""
        return 0 if self.fabric is None else self.fabric.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1 if self.fabric is None else self.fabric.world_size


@dataclass(frozen=True)
class Prepared:
    """What the plan came to for a pair and its data, before anything of the pair has run."""

    plan: Plan
    pair: Pair
    bound: ELBO
    callbacks: tuple[Callback, ...]
    batches: Batches
    held_out: Batches | None
    seed: int
    place: torch.device
    directory: pathlib.Path | None


@dataclass
class Training:
    """A run that is under way, and everything that its loop needs."""

    prepared: Prepared
    run: Run
    guard: Guard
    step: Step
    units: UnitCounter
    seed: int
