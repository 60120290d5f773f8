"""Bounds, effect handlers and the training loop."""

from pyro_vaes.infer.adversarial import Adversarial_ELBO
from pyro_vaes.infer.bounds.aggregate_posterior import AggregatePosterior_ELBO, AggregateTerms
from pyro_vaes.infer.bounds.bound import Bound
from pyro_vaes.infer.bounds.doubly_reparameterized import DReG_ELBO
from pyro_vaes.infer.bounds.free_bits import FreeBits_ELBO
from pyro_vaes.infer.bounds.importance import ImportanceWeighted_ELBO
from pyro_vaes.infer.bounds.mmd import MMD_ELBO
from pyro_vaes.infer.bounds.mutual_posterior import MutualPosterior_ELBO, PosteriorPairs
from pyro_vaes.infer.bounds.recursive_mixture import RecursiveMixture_ELBO
from pyro_vaes.infer.bounds.sticking_the_landing import StickingTheLanding_ELBO
from pyro_vaes.infer.bounds.stratified_mixture import StratifiedMixture_ELBO
from pyro_vaes.infer.checks.check import CheckReport, check
from pyro_vaes.infer.checks.problems import Problem
from pyro_vaes.infer.handlers import local_parameters, scale_latents
from pyro_vaes.infer.history import History
from pyro_vaes.infer.training.callbacks import (
    Callback,
    ClipGradNorm,
    EarlyStopping,
    KLWarmup,
    LearningRate,
    Run,
    SoftFreeBits,
    TensorBoard,
)
from pyro_vaes.infer.training.checkpoint import load_weights, save_weights
from pyro_vaes.infer.training.evaluation import evaluate
from pyro_vaes.infer.training.fit import fit
from pyro_vaes.infer.training.nonfinite import NonFiniteError, OnNaN
from pyro_vaes.infer.training.progressive import ProgressiveRungs
from pyro_vaes.infer.training.weight_average import WeightAverage

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
    "OnNaN",
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
    "load_weights",
    "local_parameters",
    "save_weights",
    "scale_latents",
]
