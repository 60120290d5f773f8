"""What is learnt from a fitted pair: likelihoods, replicates, ArviZ groups, posterior collapse."""

from pyro_vaes.diagnostics.chi_square import chi_square_collapse_curve, chi_square_collapse_probability
from pyro_vaes.diagnostics.collapse import CollapseReport, SiteCollapse, collapse_report
from pyro_vaes.diagnostics.datatree import summary, to_datatree, to_inference_data
from pyro_vaes.diagnostics.forecast import forecast_collapse
from pyro_vaes.diagnostics.forecast_tables import CollapseForecast, ForecastComparison
from pyro_vaes.diagnostics.likelihood import LogLikelihood, log_likelihood, log_weights, pareto_khat
from pyro_vaes.diagnostics.predictive import posterior_predictive, prior_predictive, reconstruct

__all__ = [
    "CollapseForecast",
    "CollapseReport",
    "ForecastComparison",
    "LogLikelihood",
    "SiteCollapse",
    "chi_square_collapse_curve",
    "chi_square_collapse_probability",
    "collapse_report",
    "forecast_collapse",
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
