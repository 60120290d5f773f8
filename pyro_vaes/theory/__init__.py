"""Closed forms of the linear case and of finite tables, the truth that estimators are tested against."""

from .gibbs import GibbsChain, gibbs_chain
from .linear_hierarchical_vae import LinearHierarchicalVAE, linear_hierarchical_vae
from .linear_vae import LinearCVAE, LinearVAE, linear_cvae, linear_vae
from .ppca import ProbabilisticPCA, probabilistic_pca
from .spectrum import (
    cross_spectrum,
    moment_spectrum,
    residual_spectrum,
    schur_complement,
    second_moment,
    second_moment_spectrum,
)

__all__ = [
    "GibbsChain",
    "LinearCVAE",
    "LinearHierarchicalVAE",
    "LinearVAE",
    "ProbabilisticPCA",
    "cross_spectrum",
    "gibbs_chain",
    "linear_cvae",
    "linear_hierarchical_vae",
    "linear_vae",
    "moment_spectrum",
    "probabilistic_pca",
    "residual_spectrum",
    "schur_complement",
    "second_moment",
    "second_moment_spectrum",
]
