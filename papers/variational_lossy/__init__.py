"""Variational Lossy Autoencoder (Chen et al., 2017): a decoder that sees some pixels leaves z only the rest.

:mod:`~papers.variational_lossy.binary_images` is the paper's experiment, :mod:`~papers.variational_lossy.coins` a toy
with known entropies.

References:
    | Variational Lossy Autoencoder (Chen et al., 2017)
    | https://arxiv.org/abs/1611.02731
"""

from papers.variational_lossy.binary_images import VARIATIONAL_LOSSY
from papers.variational_lossy.coins import LOSSY_COINS

__all__ = ["LOSSY_COINS", "VARIATIONAL_LOSSY"]
