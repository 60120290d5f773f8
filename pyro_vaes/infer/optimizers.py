"""Optimisers as users give them, and steps that are taken only where they are finite."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TypeAlias

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
OptimizerLike: TypeAlias = MakeOptimizer | Optimizer | PyroOptim


def make_optimizer(optim: OptimizerLike | None, parameters: list[Tensor]) -> Optimizer:
    """A torch optimiser of the parameters, from any of the things that ``fit`` takes for one.

    Raises:
        ValueError: It is none of these, or an optimiser of other parameters.
    """
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
                f"The optimiser lacks {missing} of the {len(parameters)} parameters of this "
                "model and guide. Pass a function of the parameters instead: "
                "functools.partial(torch.optim.Adam, lr=1e-3)."
            )
        return optim

    made = optim(parameters) if callable(optim) else optim
    if not isinstance(made, Optimizer):
        what = f"optim is a {type(optim).__name__}"
        if callable(optim):
            what = f"optim returned a {type(made).__name__}"
        raise ValueError(
            f"{what}; a function of the parameters that returns a torch optimiser is wanted, "
            "such as functools.partial(torch.optim.Adam, lr=1e-3), or a torch or Pyro "
            "optimiser."
        )
    return made


def halve_learning_rate(optimizer: Optimizer) -> None:
    """Halve the rates of all groups, those as well to which a schedule refers."""
    for group in optimizer.param_groups:
        for rate in ("lr", "initial_lr"):
            if rate in group:
                group[rate] = 0.5 * group[rate]


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together; 0 without any."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def step_if_finite(optimizer: Optimizer, loss: Tensor) -> None:
    """Take an optimiser's step unless the loss or a gradient is not finite."""
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    good = torch.isfinite(loss + gradient_norm(parameters))
    if knows_found_inf(optimizer, loss.device):
        step_where(optimizer, good)
        release_found_inf(optimizer)
    elif bool(good):
        optimizer.step()


def knows_found_inf(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether an optimiser can be told on the device to take no step.

    Then no host synchronisation is needed; the fused ones on a GPU can.
    """
    supports = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
    return device.type != "cpu" and supports


def step_where(optimizer: Optimizer, good: Tensor) -> None:
    """Take a step if ``good`` is true, decided on the device."""
    vars(optimizer).update(found_inf=(~good).float(), grad_scale=None)
    optimizer.step()


def release_found_inf(optimizer: Optimizer) -> None:
    """Take the flag back: that of the last step must not rule the user's next one."""
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)
