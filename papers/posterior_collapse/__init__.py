"""Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024): when posteriors collapse.

    :mod:`~papers.posterior_collapse.linear`        E1 to E4, linear pairs beside their closed forms
    :mod:`~papers.posterior_collapse.nonlinear`     E5 to E9, other pairs beside the linear forecast

References:
    | Beyond Vanilla Variational Autoencoders: Detecting Posterior Collapse in Conditional and Hierarchical Variational
    | Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

from papers.posterior_collapse.linear import LINEAR_COLLAPSE
from papers.posterior_collapse.nonlinear import POSTERIOR_COLLAPSE

__all__ = ["LINEAR_COLLAPSE", "POSTERIOR_COLLAPSE"]
