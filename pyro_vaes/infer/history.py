"""What a training run leaves behind: nats per datum by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class History:
    """Losses (negative bounds) in nats per datum, one entry per epoch.

    Attributes:
        epochs: Epoch numbers, from 1.
        train: Mean training loss over the epoch.
        valid: Held-out loss after the epoch, where there is a validation set.
        seconds: Wall-clock time of the epoch, evaluation included.
        learning_rate: Learning rate at the epoch's end.
        grad_norm: Mean gradient norm over the epoch.
        skipped: Steps skipped because a loss or a gradient was not finite.
        best_epoch: Epoch whose weights early stopping restored, if it did.
        stopped: Why training ended.
        engine: Which engine took the steps of the last epoch: ``"eager"``, ``"captured"`` or
            ``"compiled"``.
        engine_note: Why it was no quicker one, in words.
    """

    epochs: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    skipped: int = 0
    best_epoch: int | None = None
    stopped: str = ""
    engine: str = "eager"
    engine_note: str = ""

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epoch yet)"
        parts = [f"{self.epochs[-1]} epochs", f"train {self.train[-1]:.3f}"]
        if self.valid:
            parts.append(f"valid {self.valid[-1]:.3f} (best {min(self.valid):.3f})")
        parts.append(f"{sum(self.seconds):.1f} s {self.engine}")
        stopped = f", {self.stopped}" if self.stopped else ""
        return f"History({', '.join(parts)}; nats per datum{stopped})"

    def to_dict(self) -> dict[str, object]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the losses in nats per datum against the epoch."""
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(5, 3.2))[1] if ax is None else ax
        ax.plot(self.epochs, self.train, label="training")
        if self.valid:
            ax.plot(self.epochs, self.valid, label="held out")
        if self.best_epoch is not None:
            ax.axvline(self.best_epoch, color="0.6", lw=1, ls=":", label=f"best epoch ({self.best_epoch})")
        ax.set(xlabel="epoch", ylabel="loss (nats per datum)", title="Negative bound")
        ax.legend(frameon=False)
        return ax
