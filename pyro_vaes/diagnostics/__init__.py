"""What is learnt from a fitted pair: likelihoods, gaps, calibration, replicates, ArviZ groups, codes, collapse."""

from pyro_vaes.diagnostics.aggregate import aggregate_report
from pyro_vaes.diagnostics.aggregate_draws import draw_from_aggregate
from pyro_vaes.diagnostics.aggregate_tables import AggregateReport, KLDecomposition, kl_decomposition
from pyro_vaes.diagnostics.ais import AnnealedLikelihood, ais
from pyro_vaes.diagnostics.bdmc import Sandwich, bdmc
from pyro_vaes.diagnostics.calibration import Calibration, calibration
from pyro_vaes.diagnostics.chi_square import chi_square_collapse_curve, chi_square_collapse_probability
from pyro_vaes.diagnostics.clustering import ClusteringReport, ClusteringScores, clustering_report, clustering_scores
from pyro_vaes.diagnostics.code_length import CodeLength, code_length
from pyro_vaes.diagnostics.collapse import collapse_report
from pyro_vaes.diagnostics.collapse_tables import CollapseReport, SiteCollapse
from pyro_vaes.diagnostics.datatree import summary, to_datatree, to_inference_data
from pyro_vaes.diagnostics.forecast import forecast_collapse
from pyro_vaes.diagnostics.forecast_tables import CollapseForecast, ForecastComparison
from pyro_vaes.diagnostics.gap import InferenceGap, inference_gap
from pyro_vaes.diagnostics.handlers import take_means
from pyro_vaes.diagnostics.image_distance import (
    classifier_features,
    frechet_distance,
    inception_distance,
    kernel_distance,
)
from pyro_vaes.diagnostics.likelihood import LogLikelihood, log_likelihood, log_weights, pareto_khat
from pyro_vaes.diagnostics.posterior_means import posterior_means
from pyro_vaes.diagnostics.predictive import posterior_predictive, prior_predictive, reconstruct
from pyro_vaes.diagnostics.representation import RepresentationReport, representation_report
from pyro_vaes.diagnostics.sharpness import ReconstructionReport, high_frequency_ratio, reconstruction_report

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
