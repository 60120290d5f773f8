"""Closed forms of the linear case, the truth that estimators are tested against."""

from pyro_vaes.theory.ppca import ProbabilisticPCA, probabilistic_pca

__all__ = ["ProbabilisticPCA", "probabilistic_pca"]
