"""The optimiser's part of a step as tensor operations, so that it goes into the graph.

    g <- g min(1, c / |g|)                                           clipping
    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g²               Adam
    p <- p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

Nothing moves where the loss or a gradient is not finite.

References:
    | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
    | https://arxiv.org/abs/1412.6980
    | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019)
    | https://arxiv.org/abs/1711.05101
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

OFF = ("amsgrad", "maximize", "differentiable")
NORM_FLOOR = 1e-6  # added to the norm by torch's clip_grad_norm_


class Outcome(NamedTuple):
    """What a step has come to beside the loss: the norm of the gradients, and whether all was finite."""

    norm: Tensor
    good: Tensor


@dataclass
class AdamUpdate:
    """Steps of :class:`torch.optim.Adam` or ``AdamW``, whose state they share.

    Arguments:
        optimizer: The optimiser.
        max_norm: What the norm of all gradients is clipped to at the moment; None for no clipping.
    """

    optimizer: Optimizer
    max_norm: Callable[[], float | None]

    def __post_init__(self) -> None:
        self.decoupled = type(self.optimizer) is AdamW
        self.clips = self.max_norm() is not None

    def form(self) -> tuple[object, ...]:
        """The numbers that a graph holds as they are."""
        groups = []
        for group in self.optimizer.param_groups:
            groups.append(
                (
                    group["betas"],
                    group["eps"],
                    group["weight_decay"],
                    len(group["params"]),
                )
            )
        return tuple(groups)

    def numbers(self) -> list[float]:
        """The numbers that may change from step to step: the limit of the norm, the learning rates."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        limit = self.max_norm()
        return rates if limit is None else [limit, *rates]

    def state(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """t, m and v of each parameter, which are made where the optimiser has none yet."""
        found: list[Tensor] = []
        for parameter in parameters:
            kept = self.optimizer.state[parameter]
            if not kept:
                counter = torch.zeros((), dtype=torch.float32)
                kept["step"] = counter.to(self._place(parameter))
                kept["exp_avg"] = torch.zeros_like(parameter)
                kept["exp_avg_sq"] = torch.zeros_like(parameter)
            found += [kept["step"], kept["exp_avg"], kept["exp_avg_sq"]]
        return found

    def apply(
        self,
        loss: Tensor,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        numbers: Sequence[Tensor],
        state: Sequence[Tensor],
    ) -> tuple[list[Tensor], Outcome]:
        """Move parameters and state in place; the gradients as clipped, and how it went."""
        norm = torch.nn.utils.get_total_norm(gradients)
        rates = list(numbers)
        clipped = list(gradients)
        if self.clips:
            factor = (rates.pop(0).to(norm.dtype) / (norm + NORM_FLOOR)).clamp(max=1.0)
            clipped = [gradient * factor.to(gradient.dtype) for gradient in gradients]
            norm = norm * factor
        good = torch.isfinite(loss + norm)

        groups = self._groups()
        states = zip(state[0::3], state[1::3], state[2::3], strict=True)
        for parameter, gradient, own in zip(parameters, clipped, states, strict=True):
            number = groups[id(parameter)]
            self._move(parameter, gradient, own, rates[number], number, good)
        return clipped, Outcome(norm, good)

    def _move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: Sequence[Tensor],
        rate: Tensor,
        number: int,
        good: Tensor,
    ) -> None:
        group = self.optimizer.param_groups[number]
        (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        step, mean, square = state
        value = parameter.detach()
        rate = rate.to(value.dtype)

        start = value
        if self.decoupled:
            start = value * (1 - rate * decay)
        elif decay:
            gradient = gradient + decay * value

        new_step = step + 1
        new_mean = torch.lerp(mean, gradient, 1 - beta1)
        new_square = beta2 * square + (1 - beta2) * gradient * gradient

        # beta^t in double precision, as the optimiser has it
        t = new_step.double()
        correction1 = (1 - torch.pow(beta1, t)).to(value.dtype)
        correction2 = (1 - torch.pow(beta2, t)).sqrt().to(value.dtype)
        size = new_square.sqrt() / correction2 + eps
        moved = start - (rate / correction1) * new_mean / size

        value.copy_(torch.where(good, moved, value))
        step.copy_(torch.where(good, new_step, step))
        mean.copy_(torch.where(good, new_mean, mean))
        square.copy_(torch.where(good, new_square, square))

    def _groups(self) -> dict[int, int]:
        """The number of the group that each parameter is in, by its identity."""
        found: dict[int, int] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            found |= {id(parameter): number for parameter in group["params"]}
        return found

    def _place(self, parameter: Tensor) -> torch.device:
        """Where the optimiser counts a parameter's steps."""
        group = self.optimizer.param_groups[self._groups()[id(parameter)]]
        if group["fused"] or group["capturable"]:
            return parameter.device
        return torch.device("cpu")


def update_of(
    optimizer: Optimizer,
    max_norm: Callable[[], float | None],
    device: torch.device,
) -> AdamUpdate | None:
    """The optimiser as operations of a graph; None where it must step by itself.

    Arguments:
        optimizer: Any optimiser.
        max_norm: What gradients are clipped to.
        device: Where the parameters are.
    """
    if type(optimizer) not in (Adam, AdamW):
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return None  # somebody has replaced it

    for group in optimizer.param_groups:
        if any(group[name] for name in OFF) or isinstance(group["lr"], Tensor):
            return None
        counts_elsewhere = not (group["fused"] or group["capturable"])
        if device.type != "cpu" and counts_elsewhere:
            return None
    return AdamUpdate(optimizer, max_norm)
