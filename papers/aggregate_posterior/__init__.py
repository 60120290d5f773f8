"""How to train your VAE (Rivera, 2024): the KL of a batch's aggregate posterior, and a discriminator, on faces.

References:
    | How to train your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
"""

from papers.aggregate_posterior.experiment import AGGREGATE_POSTERIOR

__all__ = ["AGGREGATE_POSTERIOR"]
