"""What is learnt from a fitted pair: likelihoods, gaps, calibration, replicates, ArviZ groups, codes, collapse."""

from .collapse.chi_square import chi_square_collapse_curve, chi_square_collapse_probability
from .collapse.collapse import collapse_report
from .collapse.collapse_tables import CollapseReport, SiteCollapse
from .collapse.forecast import forecast_collapse
from .collapse.forecast_tables import CollapseForecast, ForecastComparison
from .handlers import take_means
from .importance_weights import pareto_khat
from .likelihood.ais import AnnealedLikelihood, ais
from .likelihood.bdmc import Sandwich, bdmc
from .likelihood.code_length import CodeLength, code_length
from .likelihood.gap import InferenceGap, inference_gap
from .likelihood.likelihood import LogLikelihood, log_likelihood, log_weights
from .posterior.aggregate import aggregate_report
from .posterior.aggregate_draws import draw_from_aggregate
from .posterior.aggregate_tables import AggregateReport, KLDecomposition, kl_decomposition
from .posterior.calibration import Calibration, calibration
from .posterior.datatree import summary, to_datatree, to_inference_data
from .posterior.posterior_means import posterior_means
from .posterior.predictive import posterior_predictive, prior_predictive, reconstruct
from .posterior.sharpness import (
    ReconstructionReport,
    high_frequency_ratio,
    reconstruction_report,
)
from .representation.clustering import (
    ClusteringReport,
    ClusteringScores,
    clustering_report,
    clustering_scores,
)
from .representation.image_distance import (
    classifier_features,
    frechet_distance,
    inception_distance,
    kernel_distance,
)
from .representation.representation import (
    RepresentationReport,
    knn_accuracy,
    representation_report,
)

__all__ = [
    "AggregateReport",
    "KLDecomposition",
    "aggregate_report",
    "draw_from_aggregate",
    "kl_decomposition",
    "Calibration",
    "AnnealedLikelihood",
    "ClusteringReport",
    "ClusteringScores",
    "CodeLength",
    "CollapseReport",
    "InferenceGap",
    "CollapseForecast",
    "ForecastComparison",
    "LogLikelihood",
    "ReconstructionReport",
    "Sandwich",
    "SiteCollapse",
    "calibration",
    "ais",
    "bdmc",
    "knn_accuracy",
    "RepresentationReport",
    "clustering_report",
    "clustering_scores",
    "code_length",
    "collapse_report",
    "inference_gap",
    "chi_square_collapse_curve",
    "chi_square_collapse_probability",
    "classifier_features",
    "forecast_collapse",
    "frechet_distance",
    "high_frequency_ratio",
    "inception_distance",
    "kernel_distance",
    "log_likelihood",
    "log_weights",
    "pareto_khat",
    "posterior_means",
    "posterior_predictive",
    "prior_predictive",
    "reconstruct",
    "reconstruction_report",
    "representation_report",
    "summary",
    "take_means",
    "to_datatree",
    "to_inference_data",
]
