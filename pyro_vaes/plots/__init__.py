"""Pictures of a fitted pair: arrays or tensors in, Matplotlib axes out.

Every function takes `ax` (or `axes`) to draw into a figure of yours and makes a figure of its own otherwise;
it returns what it drew into, keeps no state and changes no global setting.
"""

from pyro_vaes.plots.clusters import cluster_cards
from pyro_vaes.plots.collapse import collapse_curve, kl_bars
from pyro_vaes.plots.criticism import expected_coverage, khat, ppc_panels, rank_hist
from pyro_vaes.plots.divergences import divergence_histogram
from pyro_vaes.plots.forecast import kl_forecast, loss_with_thresholds, singular_values
from pyro_vaes.plots.forecast_sweep import forecast_bars, forecast_scatter
from pyro_vaes.plots.images import image_grid, reconstructions, samples
from pyro_vaes.plots.ladder import level_manifolds
from pyro_vaes.plots.latent import latent_scatter, manifold, posterior_against_prior, traversals
from pyro_vaes.plots.style import chart_axes, legend
from pyro_vaes.plots.training import loss_curves
from pyro_vaes.plots.variants import transitions, variants

__all__ = [
    "image_grid",
    "reconstructions",
    "samples",
    "traversals",
    "variants",
    "transitions",
    "manifold",
    "level_manifolds",
    "cluster_cards",
    "latent_scatter",
    "posterior_against_prior",
    "kl_bars",
    "collapse_curve",
    "divergence_histogram",
    "kl_forecast",
    "forecast_scatter",
    "forecast_bars",
    "singular_values",
    "loss_with_thresholds",
    "loss_curves",
    "chart_axes",
    "legend",
    "ppc_panels",
    "khat",
    "rank_hist",
    "expected_coverage",
]
