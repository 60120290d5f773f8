r"""An exponential average of the weights, on which a run is evaluated and which it leaves behind.

    w̄ <- decay w̄ + (1 - decay) w        after every step, w̄ = w after the first

The steps go on from w. Everything else sees w̄: the held-out bound, early stopping, the callbacks at the end of an
epoch, the checkpoint's weights, and the pair after the last epoch. The average looks back on about ``1 / (1 - decay)``
steps, so that a run wants several times as many.

References:
    | Acceleration of Stochastic Approximation by Averaging (Polyak & Juditsky, 1992)
    | https://doi.org/10.1137/0330046
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..callback import Callback, Run, State


class WeightAverage(Callback):
    """Average all floating-point parameters and buffers of the pair.

    Other buffers are taken as they are.

    Give it to :func:`~pyro_vaes.infer.fit` once the weights are initialised from the data, if they are. After a
    rollback the average starts anew.

    Arguments:
        decay: The share of the old average, in [0, 1); 0.998 in the lossy auto-encoder.

    Raises:
        ValueError: ``decay`` is outside [0, 1).

    Example:
        >>> from pyro_vaes.infer import fit
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> history = fit(vae.model, vae.guide, torch.randn(64, 3), callbacks=[WeightAverage(0.9)], progress=False)
    """

    remembered = ("average", "count")

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is the share of the old average, in [0, 1), but got {decay}; 0.998?")
        self.update = get_ema_multi_avg_fn(decay)

    def start(self, run: Run) -> None:
        self.live = run.pair.state()  # the tensors that the steps change in place
        self.average: dict[str, Tensor] = {}
        self.count = 0
        for name, tensor in self.live.items():
            if tensor.is_floating_point():
                self.average[name] = tensor.clone()

    def stepped(self, run: Run) -> None:
        averages = list(self.average.values())
        weights = [self.live[name] for name in self.average]
        if self.count:
            self.update(averages, weights, self.count)
        else:
            torch._foreach_copy_(averages, weights)
        self.count += 1

    def rolled_back(self, run: Run) -> None:
        self.count = 0  # the next step starts it

    def evaluation_weights(self, run: Run) -> dict[str, Tensor] | None:
        """The average, or None before the first step."""
        return {**self.live, **self.average} if self.count else None

    def load_state_dict(self, state: State) -> None:
        average = self.average
        super().load_state_dict(state)
        for name, tensor in average.items():  # on the device of the run
            tensor.copy_(self.average[name])
        self.average = average


def use_evaluation_weights(run: Run) -> None:
    """Put the weights in place, for good, on which a callback wants the run evaluated."""
    for callback in run.callbacks:
        weights = callback.evaluation_weights(run)
        if weights is not None:
            run.pair.load_state(weights)
            return


@contextlib.contextmanager
def evaluation_weights(run: Run) -> Iterator[dict[str, Tensor]]:
    """The same for a while; yields the weights to go on from, which come back afterwards."""
    last = run.pair.snapshot()
    use_evaluation_weights(run)
    try:
        yield last
    finally:
        run.pair.load_state(last)
