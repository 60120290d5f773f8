"""What can happen between the steps of :func:`~pyro_vaes.infer.fit`: schedules, clipping, early stopping, logging.

Their base is :class:`~pyro_vaes.infer.Callback`.
"""

import math
import pathlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..callback import Callback, Handler, Run, State
from ..handlers import scale_latents


class ClipGradNorm(Callback):
    """Scale the gradient down so that its norm is at most ``max_norm`` (nats per datum per unit of parameter)."""

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, but got {max_norm}.")
        self.max_norm = max_norm

    def gradients(self, run: Run, parameters: list[Tensor]) -> None:
        assert self.max_norm is not None
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)


class LearningRate(Callback):
    """A torch learning-rate schedule.

    Arguments:
        schedule: Called with the optimiser, returns a scheduler: ``lambda o: CosineAnnealingLR(o, T_max=epochs)``. A
            ``ReduceLROnPlateau`` watches the held-out loss, or the training loss where there are no held-out data.
        per_step: Whether it moves after each step rather than each epoch.
    """

    def __init__(self, schedule: Callable[[Optimizer], LRScheduler], *, per_step: bool = False) -> None:
        self.schedule, self.per_step = schedule, per_step

    def start(self, run: Run) -> None:
        self.scheduler = self.schedule(run.optimizer)
        if self.per_step and isinstance(self.scheduler, ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau watches the loss of an epoch; leave per_step out.")

    def stepped(self, run: Run) -> None:
        if self.per_step:
            self.scheduler.step()

    def epoch(self, run: Run) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step((run.history.valid or run.history.train)[-1])
        elif not self.per_step:
            self.scheduler.step()

    def rolled_back(self, run: Run) -> None:
        if hasattr(self.scheduler, "base_lrs"):
            self.scheduler.base_lrs = [0.5 * rate for rate in self.scheduler.base_lrs]

    def state_dict(self) -> State:
        return dict(self.scheduler.state_dict())

    def load_state_dict(self, state: State) -> None:
        self.scheduler.load_state_dict(state)


class KLWarmup(Callback):
    """Raise the KL weight from ``start`` to ``end`` over the first ``steps`` steps; held-out bounds keep weight 1.

    ``beta_t = end - (end - start) exp(-5 t / steps)`` if ``exponential``, else linear in t.

    Arguments:
        steps: Length of the warm-up in steps.
        start: First weight, positive.
        end: Last weight.
        exponential: Shape of the rise.
    """

    weighs_kl = True

    def __init__(self, steps: int, *, start: float = 1e-3, end: float = 1.0, exponential: bool = False) -> None:
        if steps < 1 or start <= 0 or end <= 0:
            raise ValueError(f"KLWarmup needs steps >= 1 and positive weights, but got {steps}, {start} and {end}.")
        self.steps, self.begin, self.end, self.exponential = steps, start, end, exponential

    def beta(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        share = step / self.steps
        if self.exponential:
            return self.end - (self.end - self.begin) * math.exp(-5.0 * share)
        return self.begin + (self.end - self.begin) * min(1.0, share)

    def handler(self, run: Run) -> Handler | None:
        return scale_latents(self.beta(run.step))  # at 1 too: all steps are alike


class SoftFreeBits(Callback):
    """Free bits by a slowly adapted KL weight (Chen et al., 2017), towards a KL of ``nats``.

    The weight g (at most 1) is multiplied by 1.1 when the measured KL exceeds ``(1 + slack) nats`` and by 0.9 when it
    is below ``nats``. The paper does not say how often.

    Arguments:
        nats: Wanted KL in nats per datum.
        measure: Returns the current KL in nats per datum, for example of a fixed batch.
        slack: Share by which the KL may exceed ``nats``; the paper found 0.03 to 0.3 to work and prefers 0.05.
        every: Steps between two measurements; None for one at the end of each epoch.

    References:
        | Variational Lossy Autoencoder (Chen et al., 2017)
        | https://arxiv.org/abs/1611.02731
    """

    weighs_kl = True
    remembered = ("weight",)

    def __init__(
        self, nats: float, measure: Callable[[], float], *, slack: float = 0.05, every: int | None = None
    ) -> None:
        if not nats > 0:
            raise ValueError(f"The wanted KL is in nats and must be positive, but got {nats}.")
        if slack < 0 or (every is not None and every < 1):
            raise ValueError(f"slack is a share, at least 0, and every a number of steps, but got {slack} and {every}.")
        self.nats, self.measure, self.slack, self.every, self.weight = nats, measure, slack, every, 1.0

    def handler(self, run: Run) -> Handler | None:
        return None if self.weight == 1.0 else scale_latents(self.weight)

    def stepped(self, run: Run) -> None:
        if self.every is not None and run.step % self.every == 0:
            self._adapt()

    def epoch(self, run: Run) -> None:
        if self.every is None:
            self._adapt()

    def _adapt(self) -> None:
        kl = self.measure()
        if kl > (1 + self.slack) * self.nats:
            self.weight = min(1.0, 1.1 * self.weight)
        elif kl < self.nats:
            self.weight *= 0.9


class EarlyStopping(Callback):
    """Stop when the held-out loss has not fallen for ``patience`` epochs, and restore the best weights.

    Arguments:
        patience: Epochs to wait.
        min_delta: A fall smaller than this many nats per datum does not count.
    """

    remembered = ("best", "best_epoch", "weights")

    def __init__(self, patience: int = 10, *, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, but got {patience}.")
        self.patience, self.min_delta = patience, min_delta

    def start(self, run: Run) -> None:
        if not run.held_out:
            raise ValueError("EarlyStopping watches held-out data, but there are none: pass valid=... to fit.")
        self.best, self.best_epoch = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def epoch(self, run: Run) -> None:
        if run.history.valid[-1] < self.best - self.min_delta:
            self.best, self.best_epoch = run.history.valid[-1], run.epoch
            self.weights = run.pair.snapshot()
        elif run.epoch - self.best_epoch >= self.patience:
            run.stop = f"stopped early: no better held-out loss since epoch {self.best_epoch}"

    def finish(self, run: Run) -> None:
        if self.weights:
            run.pair.load_state(self.weights)
            run.history.best_epoch = self.best_epoch


class TensorBoard(Callback):
    """Write the losses of each epoch for TensorBoard; needs the extra ``tensorboard``.

    Arguments:
        directory: Where the event files go.
    """

    def __init__(self, directory: str | pathlib.Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard logging needs the extra: pip install 'pyro-vaes[tensorboard]'.") from error
        self.writer = SummaryWriter(str(directory))

    def epoch(self, run: Run) -> None:
        history = run.history
        curves = {
            "loss/train": history.train,
            "loss/valid": history.valid,
            "learning_rate": history.learning_rate,
        }
        for name, values in curves.items():
            if values:
                self.writer.add_scalar(name, values[-1], run.epoch)

    def finish(self, run: Run) -> None:
        self.writer.close()
