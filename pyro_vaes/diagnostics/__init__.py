"""What is learnt from a fitted pair: likelihoods, gaps, calibration, replicates, ArviZ groups, posterior collapse."""

from pyro_vaes.diagnostics.calibration import Calibration, calibration
from pyro_vaes.diagnostics.collapse import CollapseReport, SiteCollapse, collapse_report
from pyro_vaes.diagnostics.datatree import summary, to_datatree, to_inference_data
from pyro_vaes.diagnostics.gap import InferenceGap, inference_gap
from pyro_vaes.diagnostics.likelihood import LogLikelihood, log_likelihood, log_weights, pareto_khat
from pyro_vaes.diagnostics.predictive import posterior_predictive, prior_predictive, reconstruct

__all__ = [
    "Calibration",
    "CollapseReport",
    "InferenceGap",
    "LogLikelihood",
    "SiteCollapse",
    "calibration",
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
