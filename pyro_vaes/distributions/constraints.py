"""Supports that torch does not name."""

from torch import Tensor
from torch.distributions.constraints import Constraint


class grid(Constraint):  # lower case, as torch's own constraints are
    """The values {0, 1/(L-1), 2/(L-1), ..., 1}: pixels with L levels, scaled to [0, 1].

    Arguments:
        num_levels: Number L of levels, at least 2.
        tolerance: How far from a level a value may lie, in units of the step 1/(L-1); 0.01 passes what
            float32 makes of ``uint8 / 255`` and refuses anything visibly off the grid.

    Example:
        >>> import torch
        >>> grid(256).check(torch.tensor([0.0, 7 / 255, 0.5, 2.0]))
        tensor([ True,  True, False, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, num_levels: int, tolerance: float = 0.01) -> None:
        self.num_levels, self.tolerance = num_levels, tolerance
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        steps = value * (self.num_levels - 1)
        return ((steps - steps.round()).abs() <= self.tolerance) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"grid(num_levels={self.num_levels})"
