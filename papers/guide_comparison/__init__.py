"""What two papers share: several guides for one model, trained alike, measured and tabulated.

The papers are :mod:`papers.variational_laplace` and :mod:`papers.recursive_mixture`.
"""

from papers.guide_comparison.comparison import (
    Guide,
    Method,
    compare,
    comparison,
    image_setting,
)
from papers.guide_comparison.setting import Networks, Setting

__all__ = [
    "Guide",
    "Method",
    "Networks",
    "Setting",
    "compare",
    "comparison",
    "image_setting",
]
