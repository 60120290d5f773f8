"""Each paper's experiment as a function of a budget: data, p, q, bound, and a table with the published figures."""

from pyro_vaes.experiments.aggregate_posterior import AGGREGATE_POSTERIOR
from pyro_vaes.experiments.comparison import Method
from pyro_vaes.experiments.findings import Findings, Row
from pyro_vaes.experiments.gibbs_chain import GIBBS_CHAIN
from pyro_vaes.experiments.ladder_clustering import LADDER_CLUSTERING
from pyro_vaes.experiments.linear_collapse import LINEAR_COLLAPSE
from pyro_vaes.experiments.lossy_coins import LOSSY_COINS
from pyro_vaes.experiments.mutual_posterior import MUTUAL_POSTERIOR
from pyro_vaes.experiments.posterior_collapse import POSTERIOR_COLLAPSE
from pyro_vaes.experiments.recursive_mixture import RECURSIVE_MIXTURE, RECURSIVE_MIXTURE_BERNOULLI
from pyro_vaes.experiments.study import Job, Result, Study
from pyro_vaes.experiments.variational_ladder import VARIATIONAL_LADDER
from pyro_vaes.experiments.variational_laplace import VARIATIONAL_LAPLACE, VARIATIONAL_LAPLACE_BERNOULLI
from pyro_vaes.experiments.variational_lossy import VARIATIONAL_LOSSY

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
