"""What is learnt from a fitted pair: likelihoods, gaps, calibration, replicates, ArviZ groups, codes, collapse."""

from pyro_vaes.diagnostics.collapse.chi_square import chi_square_collapse_curve, chi_square_collapse_probability
from pyro_vaes.diagnostics.collapse.collapse import collapse_report
from pyro_vaes.diagnostics.collapse.collapse_tables import CollapseReport, SiteCollapse
from pyro_vaes.diagnostics.collapse.forecast import forecast_collapse
from pyro_vaes.diagnostics.collapse.forecast_tables import CollapseForecast, ForecastComparison
from pyro_vaes.diagnostics.handlers import take_means
from pyro_vaes.diagnostics.importance_weights import pareto_khat
from pyro_vaes.diagnostics.likelihood.ais import AnnealedLikelihood, ais
from pyro_vaes.diagnostics.likelihood.bdmc import Sandwich, bdmc
from pyro_vaes.diagnostics.likelihood.code_length import CodeLength, code_length
from pyro_vaes.diagnostics.likelihood.gap import InferenceGap, inference_gap
from pyro_vaes.diagnostics.likelihood.likelihood import LogLikelihood, log_likelihood, log_weights
from pyro_vaes.diagnostics.posterior.aggregate import aggregate_report
from pyro_vaes.diagnostics.posterior.aggregate_draws import draw_from_aggregate
from pyro_vaes.diagnostics.posterior.aggregate_tables import AggregateReport, KLDecomposition, kl_decomposition
from pyro_vaes.diagnostics.posterior.calibration import Calibration, calibration
from pyro_vaes.diagnostics.posterior.datatree import summary, to_datatree, to_inference_data
from pyro_vaes.diagnostics.posterior.posterior_means import posterior_means
from pyro_vaes.diagnostics.posterior.predictive import posterior_predictive, prior_predictive, reconstruct
from pyro_vaes.diagnostics.posterior.sharpness import (
    ReconstructionReport,
    high_frequency_ratio,
    reconstruction_report,
)
from pyro_vaes.diagnostics.representation.clustering import (
    ClusteringReport,
    ClusteringScores,
    clustering_report,
    clustering_scores,
)
from pyro_vaes.diagnostics.representation.image_distance import (
    classifier_features,
    frechet_distance,
    inception_distance,
    kernel_distance,
)
from pyro_vaes.diagnostics.representation.representation import (
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
