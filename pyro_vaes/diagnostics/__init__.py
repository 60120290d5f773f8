"""What is learnt from a fitted pair: likelihoods, replicates, ArviZ groups, posterior collapse."""

from pyro_vaes.diagnostics.code_length import CodeLength, code_length
from pyro_vaes.diagnostics.collapse import CollapseReport, SiteCollapse, collapse_report
from pyro_vaes.diagnostics.datatree import summary, to_datatree, to_inference_data
from pyro_vaes.diagnostics.likelihood import LogLikelihood, log_likelihood, log_weights, pareto_khat
from pyro_vaes.diagnostics.predictive import posterior_predictive, prior_predictive, reconstruct

__all__ = [
    "CodeLength",
    "CollapseReport",
    "LogLikelihood",
    "SiteCollapse",
    "code_length",
    "collapse_report",
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
