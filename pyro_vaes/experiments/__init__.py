"""Each paper's experiment as a function of a budget: data, p, q, bound, and a table with the published figures."""

from pyro_vaes.experiments.comparison import Method, compare
from pyro_vaes.experiments.experiment import Experiment
from pyro_vaes.experiments.findings import Findings, Row
from pyro_vaes.experiments.recursive_mixture import RECURSIVE_MIXTURE
from pyro_vaes.experiments.results import Comparison, Measurement
from pyro_vaes.experiments.setting import Setting
from pyro_vaes.experiments.study import Job, Result, Study
from pyro_vaes.experiments.variational_laplace import VARIATIONAL_LAPLACE

__all__ = [
    "RECURSIVE_MIXTURE",
    "VARIATIONAL_LAPLACE",
    "Comparison",
    "Experiment",
    "Findings",
    "Job",
    "Measurement",
    "Method",
    "Result",
    "Row",
    "Setting",
    "Study",
    "compare",
]
