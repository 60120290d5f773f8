"""Each paper's experiment as a function of a budget: data, p, q, bound, and a table with the published figures.

`python -m papers NAME --budget smoke|cpu|gpu` runs one; `STUDIES` has them by name. This folder is not part of the
installed package: it is run from a checkout of the repository.
"""

from papers.aggregate_posterior import AGGREGATE_POSTERIOR
from papers.findings import Findings, Row
from papers.guide_comparison import Method
from papers.ladder_clustering import LADDER_CLUSTERING
from papers.mutual_posterior import MUTUAL_POSTERIOR
from papers.posterior_collapse import LINEAR_COLLAPSE, POSTERIOR_COLLAPSE
from papers.recursive_mixture import RECURSIVE_MIXTURE, RECURSIVE_MIXTURE_BERNOULLI
from papers.study import Job, Result, Study
from papers.variational_ladder import GIBBS_CHAIN, VARIATIONAL_LADDER
from papers.variational_laplace import (
    VARIATIONAL_LAPLACE,
    VARIATIONAL_LAPLACE_BERNOULLI,
)
from papers.variational_lossy import LOSSY_COINS, VARIATIONAL_LOSSY

__all__ = [
    "STUDIES",
    "VARIATIONAL_LAPLACE",
    "VARIATIONAL_LAPLACE_BERNOULLI",
    "RECURSIVE_MIXTURE",
    "RECURSIVE_MIXTURE_BERNOULLI",
    "VARIATIONAL_LOSSY",
    "LOSSY_COINS",
    "AGGREGATE_POSTERIOR",
    "LADDER_CLUSTERING",
    "MUTUAL_POSTERIOR",
    "POSTERIOR_COLLAPSE",
    "LINEAR_COLLAPSE",
    "VARIATIONAL_LADDER",
    "GIBBS_CHAIN",
    "Findings",
    "Job",
    "Method",
    "Result",
    "Row",
    "Study",
]

STUDIES = {
    study.name: study
    for study in (
        VARIATIONAL_LAPLACE,
        VARIATIONAL_LAPLACE_BERNOULLI,
        RECURSIVE_MIXTURE,
        RECURSIVE_MIXTURE_BERNOULLI,
        VARIATIONAL_LOSSY,
        LOSSY_COINS,
        AGGREGATE_POSTERIOR,
        LADDER_CLUSTERING,
        MUTUAL_POSTERIOR,
        POSTERIOR_COLLAPSE,
        LINEAR_COLLAPSE,
        VARIATIONAL_LADDER,
        GIBBS_CHAIN,
    )
}
