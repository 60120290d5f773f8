"""What a training run tells those who take part in it, and when.

A callback sees the :class:`Run` at the moments that its methods name. All that it must
remember goes through ``state_dict``, so that a resumed run goes on exactly as an
uninterrupted one.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from pyro_vaes.programs import Pair

from .history import History

Handler = AbstractContextManager[object]
State = dict[str, object]


@dataclass
class Run:
    """A training run as callbacks see it.

    Attributes:
        pair: Model, guide and their parameters.
        optimizer: The torch optimiser.
        history: Nats per datum so far.
        epoch: Epochs finished.
        step: Steps finished.
        total_epochs: Epochs asked for.
        steps_per_epoch: Steps in an epoch; 0 when unknown.
        stop: Set to a reason to end training after this epoch.
        held_out: Whether there are held-out data.
        callbacks: All callbacks of the run.
    """

    pair: Pair
    optimizer: Optimizer
    total_epochs: int
    steps_per_epoch: int
    history: History = field(default_factory=History)
    epoch: int = 0
    step: int = 0
    stop: str = ""
    held_out: bool = False
    callbacks: Sequence["Callback"] = ()


class Callback:
    """Does nothing; override what is needed.

    Attributes:
        weighs_kl: Whether its handler weighs the KL term, which some bounds do not have.
        remembered: Names of the attributes that a resumed run must know.
        max_norm: What its ``gradients`` clips the norm of all gradients to, if it does
            nothing else. A compiled step then clips by itself.
    """

    weighs_kl = False
    max_norm: float | None = None
    remembered: Sequence[str] = ()

    def start(self, run: Run) -> None:
        """Before the first step, resumed or not."""

    def handler(self, run: Run) -> Handler | None:
        """An effect handler to run this step's loss under, or None."""
        return None

    def gradients(self, run: Run, parameters: list[Tensor]) -> None:
        """Between the backward pass and the optimiser's step."""

    def stepped(self, run: Run) -> None:
        """After the optimiser's step."""

    def kept(self, run: Run) -> None:
        """After a run that may roll back has kept a copy of the weights.

        It does so at an epoch's start and after a rollback.
        """

    def rolled_back(self, run: Run) -> None:
        """After a return to the weights of the epoch's start, at half the learning rate."""

    def evaluation_weights(self, run: Run) -> dict[str, Tensor] | None:
        """The weights by name to evaluate and to leave behind.

        None stands for those that the steps have reached.
        """
        return None

    def epoch(self, run: Run) -> None:
        """After an epoch and its held-out evaluation, whose weights are in place."""

    def finish(self, run: Run) -> None:
        """After the last epoch, also when stopped early."""

    def state_dict(self) -> State:
        """What a resumed run must know."""
        return {name: getattr(self, name) for name in self.remembered}

    def load_state_dict(self, state: State) -> None:
        """Take up what a checkpoint remembers."""
        for name in self.remembered:
            setattr(self, name, state[name])
