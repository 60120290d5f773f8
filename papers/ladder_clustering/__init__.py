"""Disentangling to Cluster: Gaussian Mixture Variational Ladder Autoencoders (Willetts, Roberts & Holmes, 2019).

References:
    | Disentangling to Cluster: Gaussian Mixture Variational Ladder Autoencoders (Willetts, Roberts & Holmes, 2019)
    | https://arxiv.org/abs/1909.11501
"""

from papers.ladder_clustering.experiment import LADDER_CLUSTERING

__all__ = ["LADDER_CLUSTERING"]
