"""A plane of two latents, decoded picture by picture."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .images import Mosaic
from .style import label


@dataclass(frozen=True)
class Plane:
    """A grid over two latents, one of which grows to the right and the other upwards.

    Attributes:
        across: Values of the first latent, from left to right, with shape `(n,)`.
        up: Values of the second latent, from bottom to top, with shape `(n,)`.
    """

    across: Tensor
    up: Tensor

    def points(self) -> Tensor:
        """Both latents of every picture, row by row from the top, with shape `(n * n, 2)`.

        Example:
            >>> Plane(torch.tensor([1, 2]), torch.tensor([3, 4])).points().tolist()
            [[1, 4], [2, 4], [1, 3], [2, 3]]
        """
        rows, columns = torch.meshgrid(self.up.flip(0), self.across, indexing="ij")
        return torch.stack((columns, rows), dim=-1).flatten(0, 1)

    def name_axes(self, mosaic: Mosaic, form: str, xlabel: str, ylabel: str) -> None:
        """Write the first, the middle and the last value along both axes of a mosaic.

        Arguments:
            mosaic: The pictures of the points.
            form: How numbers are written, such as ".2f".
            xlabel: Name of the first latent.
            ylabel: Name of the second latent.
        """
        last = len(self.up) - 1
        shown = sorted({0, len(self.up) // 2, last})
        right, high = (_numbers(values) for values in (self.across, self.up))

        columns, rows = mosaic.column_centres[shown], mosaic.row_centres[shown]
        mosaic.ax.set_xticks(columns, [f"{right[i]:{form}}" for i in shown])
        mosaic.ax.set_yticks(rows, [f"{high[last - i]:{form}}" for i in shown])
        label(mosaic.ax, None, xlabel, ylabel)


def _numbers(values: Tensor) -> np.ndarray:
    """Values to write: rounding leaves no -0 and no 1e-17."""
    return values.double().cpu().numpy().round(6) + 0.0
