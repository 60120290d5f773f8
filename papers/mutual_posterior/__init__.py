"""MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019).

References:
    | MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019)
    | https://arxiv.org/abs/1901.01498
"""

from papers.mutual_posterior.experiment import MUTUAL_POSTERIOR

__all__ = ["MUTUAL_POSTERIOR"]
