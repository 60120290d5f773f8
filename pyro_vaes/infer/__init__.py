"""Bounds, effect handlers and the training loop."""

from pyro_vaes.infer.adversarial import Adversarial_ELBO
from pyro_vaes.infer.aggregate_posterior import AggregatePosterior_ELBO, AggregateTerms
from pyro_vaes.infer.bound import Bound
from pyro_vaes.infer.callbacks import (
    Callback,
    ClipGradNorm,
    EarlyStopping,
    KLWarmup,
    LearningRate,
    Run,
    SoftFreeBits,
    TensorBoard,
)
from pyro_vaes.infer.check import CheckReport, check
from pyro_vaes.infer.checkpoint import load, save
from pyro_vaes.infer.doubly_reparameterized import DReG_ELBO
from pyro_vaes.infer.evaluation import evaluate
from pyro_vaes.infer.fit import fit
from pyro_vaes.infer.free_bits import FreeBits_ELBO
from pyro_vaes.infer.handlers import local_parameters, scale_latents
from pyro_vaes.infer.history import History
from pyro_vaes.infer.importance import ImportanceWeighted_ELBO
from pyro_vaes.infer.mmd import MMD_ELBO
from pyro_vaes.infer.mutual_posterior import MutualPosterior_ELBO, PosteriorPairs
from pyro_vaes.infer.nonfinite import NonFiniteError
from pyro_vaes.infer.problems import Problem
from pyro_vaes.infer.progressive import ProgressiveRungs
from pyro_vaes.infer.recursive_mixture import RecursiveMixture_ELBO
from pyro_vaes.infer.sticking_the_landing import StickingTheLanding_ELBO
from pyro_vaes.infer.stratified_mixture import StratifiedMixture_ELBO
from pyro_vaes.infer.weight_average import WeightAverage

__all__ = [
    "Adversarial_ELBO",
    "AggregatePosterior_ELBO",
    "AggregateTerms",
    "Bound",
    "Callback",
    "CheckReport",
    "ClipGradNorm",
    "DReG_ELBO",
    "EarlyStopping",
    "FreeBits_ELBO",
    "History",
    "ImportanceWeighted_ELBO",
    "KLWarmup",
    "LearningRate",
    "MMD_ELBO",
    "MutualPosterior_ELBO",
    "NonFiniteError",
    "PosteriorPairs",
    "Problem",
    "ProgressiveRungs",
    "RecursiveMixture_ELBO",
    "Run",
    "SoftFreeBits",
    "StickingTheLanding_ELBO",
    "StratifiedMixture_ELBO",
    "TensorBoard",
    "WeightAverage",
    "check",
    "evaluate",
    "fit",
    "load",
    "local_parameters",
    "save",
    "scale_latents",
]
