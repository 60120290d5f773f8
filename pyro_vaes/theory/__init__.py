"""Closed forms of the linear case and of finite tables, the truth that estimators are tested against."""

from pyro_vaes.theory.gibbs import GibbsChain, gibbs_chain
from pyro_vaes.theory.ppca import ProbabilisticPCA, probabilistic_pca

__all__ = ["GibbsChain", "ProbabilisticPCA", "gibbs_chain", "probabilistic_pca"]
