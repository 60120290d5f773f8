"""Each paper's experiment as a function of a budget: data, p, q, bound, and a table with the published figures."""

from pyro_vaes.experiments.aggregate_posterior import AGGREGATE_POSTERIOR
from pyro_vaes.experiments.comparison import Method
from pyro_vaes.experiments.findings import Findings, Row
from pyro_vaes.experiments.recursive_mixture import RECURSIVE_MIXTURE, RECURSIVE_MIXTURE_BERNOULLI
from pyro_vaes.experiments.study import Job, Result, Study
from pyro_vaes.experiments.variational_laplace import VARIATIONAL_LAPLACE, VARIATIONAL_LAPLACE_BERNOULLI

__all__ = [
    "AGGREGATE_POSTERIOR",
    "RECURSIVE_MIXTURE",
    "RECURSIVE_MIXTURE_BERNOULLI",
    "VARIATIONAL_LAPLACE",
    "VARIATIONAL_LAPLACE_BERNOULLI",
    "Findings",
    "Job",
    "Method",
    "Result",
    "Row",
    "Study",
]
