"""Pictures of a fitted pair: arrays or tensors in, Matplotlib axes out.

Every function takes `ax` (or `axes`) to draw into a figure of yours and makes a figure of its own otherwise;
it returns what it drew into, keeps no state and changes no global setting.
"""

from .criticism import expected_coverage, khat, ppc_panels, rank_hist
from .divergences import collapse_curve, divergence_histogram, kl_bars
from .forecast import (
    forecast_bars,
    forecast_scatter,
    kl_forecast,
    loss_with_thresholds,
    singular_values,
)
from .images import cluster_cards, image_grid, reconstructions, samples
from .latent import latent_scatter, posterior_against_prior, traversals
from .manifolds import level_manifolds, manifold
from .style import chart_axes, legend
from .training import loss_curves
from .variants import transitions, variants

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
