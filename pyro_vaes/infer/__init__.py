"""Bounds, effect handlers and the training loop."""

from pyro_vaes.programs import local_parameters

from .adversarial import Adversarial_ELBO
from .batches.batches import (
    Batches,
    SourceBatches,
    as_batches,
    derived_seed,
    first_batch,
    train_and_valid,
)
from .bounds.aggregate_posterior import (
    AggregatePosterior_ELBO,
    AggregateTerms,
)
from .bounds.bound import Bound
from .bounds.doubly_reparameterized import DReG_ELBO
from .bounds.facts import BoundFacts, facts_of
from .bounds.free_bits import FreeBits_ELBO
from .bounds.importance_weighted import ImportanceWeighted_ELBO
from .bounds.mmd import MMD_ELBO
from .bounds.mutual_posterior import (
    Diverse,
    MutualPosterior_ELBO,
    PosteriorPairs,
)
from .bounds.recursive_mixture import RecursiveMixture_ELBO
from .bounds.standardised import (
    NormalSite,
    Standardised,
    find_normal_sites,
)
from .bounds.sticking_the_landing import StickingTheLanding_ELBO
from .bounds.stratified_mixture import StratifiedMixture_ELBO
from .callback import Callback, Run
from .checks.check import CheckReport, check
from .checks.describe import Description, SiteRow, describe
from .checks.problems import Problem
from .engines import Compile
from .handlers import scale_latents
from .history import History
from .training.callbacks import (
    ClipGradNorm,
    EarlyStopping,
    KLWarmup,
    LearningRate,
    SoftFreeBits,
    TensorBoard,
)
from .training.checkpoint import (
    is_saved,
    load_weights,
    read_checkpoint,
    save_weights,
)
from .training.evaluation import evaluate
from .training.fit import fit
from .training.nonfinite import NonFiniteError, OnNaN
from .training.progressive import ProgressiveRungs
from .training.weight_average import WeightAverage

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
    "Compile",
    "DReG_ELBO",
    "Description",
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
    "SiteRow",
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
    "describe",
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
