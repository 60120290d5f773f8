"""Bounds, effect handlers and the training loop."""

from pyro_vaes.infer.adversarial import Adversarial_ELBO
from pyro_vaes.infer.batches.batches import (
    Batches,
    SourceBatches,
    as_batches,
    derived_seed,
    first_batch,
    train_and_valid,
)
from pyro_vaes.infer.bounds.aggregate_posterior import (
    AggregatePosterior_ELBO,
    AggregateTerms,
)
from pyro_vaes.infer.bounds.bound import Bound
from pyro_vaes.infer.bounds.doubly_reparameterized import DReG_ELBO
from pyro_vaes.infer.bounds.facts import BoundFacts, facts_of
from pyro_vaes.infer.bounds.free_bits import FreeBits_ELBO
from pyro_vaes.infer.bounds.importance_weighted import ImportanceWeighted_ELBO
from pyro_vaes.infer.bounds.mmd import MMD_ELBO
from pyro_vaes.infer.bounds.mutual_posterior import (
    Diverse,
    MutualPosterior_ELBO,
    PosteriorPairs,
)
from pyro_vaes.infer.bounds.recursive_mixture import RecursiveMixture_ELBO
from pyro_vaes.infer.bounds.standardised import (
    NormalSite,
    Standardised,
    find_normal_sites,
)
from pyro_vaes.infer.bounds.sticking_the_landing import StickingTheLanding_ELBO
from pyro_vaes.infer.bounds.stratified_mixture import StratifiedMixture_ELBO
from pyro_vaes.infer.callback import Callback, Run
from pyro_vaes.infer.checks.check import CheckReport, check
from pyro_vaes.infer.checks.problems import Problem
from pyro_vaes.infer.handlers import scale_latents
from pyro_vaes.infer.history import History
from pyro_vaes.infer.training.callbacks import (
    ClipGradNorm,
    EarlyStopping,
    KLWarmup,
    LearningRate,
    SoftFreeBits,
    TensorBoard,
)
from pyro_vaes.infer.training.checkpoint import (
    is_saved,
    load_weights,
    read_checkpoint,
    save_weights,
)
from pyro_vaes.infer.training.evaluation import evaluate
from pyro_vaes.infer.training.fit import fit
from pyro_vaes.infer.training.nonfinite import NonFiniteError, OnNaN
from pyro_vaes.infer.training.progressive import ProgressiveRungs
from pyro_vaes.infer.training.weight_average import WeightAverage
from pyro_vaes.programs import local_parameters

__all__ = [
    "Adversarial_ELBO",
    "AggregatePosterior_ELBO",
    "AggregateTerms",
    "Batches",
    "Bound",
    "BoundFacts",
    "Callback",
    "CheckReport",
    "ClipGradNorm",
    "DReG_ELBO",
    "Diverse",
    "EarlyStopping",
    "FreeBits_ELBO",
    "History",
    "ImportanceWeighted_ELBO",
    "KLWarmup",
    "LearningRate",
    "MMD_ELBO",
    "MutualPosterior_ELBO",
    "NonFiniteError",
    "NormalSite",
    "OnNaN",
    "PosteriorPairs",
    "Problem",
    "ProgressiveRungs",
    "RecursiveMixture_ELBO",
    "Run",
    "SoftFreeBits",
    "SourceBatches",
    "Standardised",
    "StickingTheLanding_ELBO",
    "StratifiedMixture_ELBO",
    "TensorBoard",
    "WeightAverage",
    "as_batches",
    "check",
    "derived_seed",
    "evaluate",
    "facts_of",
    "find_normal_sites",
    "first_batch",
    "fit",
    "is_saved",
    "load_weights",
    "local_parameters",
    "read_checkpoint",
    "save_weights",
    "scale_latents",
    "train_and_valid",
]
