"""Each paper's experiment as a function of a budget: data, p, q, bound, and a table with the published figures."""

from papers.aggregate_posterior import AGGREGATE_POSTERIOR
from papers.comparison import Method
from papers.findings import Findings, Row
from papers.gibbs_chain import GIBBS_CHAIN
from papers.ladder_clustering import LADDER_CLUSTERING
from papers.linear_collapse import LINEAR_COLLAPSE
from papers.lossy_coins import LOSSY_COINS
from papers.mutual_posterior import MUTUAL_POSTERIOR
from papers.posterior_collapse import POSTERIOR_COLLAPSE
from papers.recursive_mixture import RECURSIVE_MIXTURE, RECURSIVE_MIXTURE_BERNOULLI
from papers.study import Job, Result, Study
from papers.variational_ladder import VARIATIONAL_LADDER
from papers.variational_laplace import VARIATIONAL_LAPLACE, VARIATIONAL_LAPLACE_BERNOULLI
from papers.variational_lossy import VARIATIONAL_LOSSY

__all__ = [
    "LOSSY_COINS",
    "AGGREGATE_POSTERIOR",
    "LADDER_CLUSTERING",
    "MUTUAL_POSTERIOR",
    "LINEAR_COLLAPSE",
    "POSTERIOR_COLLAPSE",
    "GIBBS_CHAIN",
    "RECURSIVE_MIXTURE",
    "RECURSIVE_MIXTURE_BERNOULLI",
    "VARIATIONAL_LADDER",
    "VARIATIONAL_LAPLACE",
    "VARIATIONAL_LAPLACE_BERNOULLI",
    "VARIATIONAL_LOSSY",
    "Findings",
    "Job",
    "Method",
    "Result",
    "Row",
    "Study",
]
