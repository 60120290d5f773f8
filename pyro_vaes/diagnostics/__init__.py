"""What is learnt from a fitted pair: likelihoods, gaps, calibration, replicates, ArviZ groups, codes, collapse."""

from pyro_vaes.diagnostics.ais import AnnealedLikelihood, ais
from pyro_vaes.diagnostics.bdmc import Sandwich, bdmc
from pyro_vaes.diagnostics.calibration import Calibration, calibration
from pyro_vaes.diagnostics.collapse import CollapseReport, SiteCollapse, collapse_report
from pyro_vaes.diagnostics.datatree import summary, to_datatree, to_inference_data
from pyro_vaes.diagnostics.gap import InferenceGap, inference_gap
from pyro_vaes.diagnostics.likelihood import LogLikelihood, log_likelihood, log_weights, pareto_khat
from pyro_vaes.diagnostics.predictive import posterior_predictive, prior_predictive, reconstruct

__all__ = [
    "Calibration",
    "AnnealedLikelihood",
    "CollapseReport",
    "InferenceGap",
    "LogLikelihood",
    "Sandwich",
    "SiteCollapse",
    "calibration",
    "ais",
    "bdmc",
    "collapse_report",
    "inference_gap",
    "log_likelihood",
    "log_weights",
    "pareto_khat",
    "posterior_predictive",
    "prior_predictive",
    "reconstruct",
    "summary",
    "to_datatree",
    "to_inference_data",
]
