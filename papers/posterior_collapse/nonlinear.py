"""Does the linear theory tell which non-linear models collapse? Experiments E5 to E9 of the collapse paper, and more.

    data   MNIST, pixels in [0, 1], neither centred nor binarised; three quarters given the bottom left one (E5, E6);
           normal vectors with a covariate of known correlation (E7)
    p, q   ReLU pairs with fixed noise, see :mod:`papers.posterior_collapse.pairs`; E6 also with linear networks;
           E6 and E8 also with convolutions, see :mod:`papers.posterior_collapse.conv_pairs`
    bound  the ELBO with a weight beta on the KL of each latent site; with "released weighting" in a case's name the
           loss of the authors' programs, the ELBO with half of that
    table  KL, active units, (epsilon, delta)-collapse, error and likelihood, beside the linear forecast

"forecast" is no experiment of the paper: a VAE over a grid of beta and noise, each point forecast before training.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

from papers.findings import Findings
from papers.posterior_collapse.measures import rank_correlation
from papers.posterior_collapse.nonlinear_cases import (
    CollapseSetting,
    conditional,
    correlated,
    hierarchical,
    plain,
)
from papers.study import Case, Result, Study

__all__ = ["POSTERIOR_COLLAPSE", "cases", "setting"]

RELEASED = ", released weighting"
AnyCase = Callable[..., Result]
Point = tuple[float, float]
BETAS, NOISES = (0.1, 0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0)
PAPER_BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
GRID = (
    0.1,
    1.0,
    2.0,
    4.0,
    6.0,
)  # beta_1 and beta_2 of the paper's pictures through z_2
CONV_BETAS = (
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
)  # each of beta_1 and beta_2 of E8 with convolutions
# No two have the same beta noise².
FORECAST = tuple(product((0.3, 1.0, 3.0, 9.0), (0.25, 0.5, 1.0)))
SMOKE = (
    "forecast beta 1,",
    "E6 digit 1",
    "E6 linear digit 1",
    "E6 CNN digit 1",
    "E5 beta 1, noise 1",
    "E7 rho 0.5",
    "E8 betas 1 0.1",
    "E8 CNN betas 1 16",
    "E9 scale 0.5",
)
"""What the names of the cases of the smallest budget begin with."""


def setting(budget: str, data: str) -> CollapseSetting:
    """The paper's at "gpu"; at "cpu" the schedules of the reference figures; at "smoke" tiny ones."""
    if budget == "smoke":
        return CollapseSetting(
            budget,
            data,
            latent_dim=4,
            hidden=(8, 8, 8),
            epochs=(1, 1, 1, 1, 1),
            vae_lr=1e-3,
            correlated=(64, 6, 16),
            test_images=64,
            likelihood=(16, 4),
        )

    if budget == "cpu":
        return CollapseSetting(
            budget,
            data,
            epochs=(15, 30, 60, 8, 3),
            vae_lr=1e-3,
            likelihood=(500, 64),
        )

    return CollapseSetting(budget, data)


def _hierarchies(budget: str) -> list[tuple[Point, float]]:
    ones = (1.0, 1.0)
    if budget != "gpu":
        others = [(1.0, 0.1), (1.0, 2.0), (0.1, 1.0)]
        return [
            (ones, 0.5),
            *((betas, 0.5) for betas in others),
            (ones, 0.25),
            (ones, 1.0),
        ]

    sweeps = [
        *((1.0, beta) for beta in PAPER_BETAS),
        *((beta, 1.0) for beta in PAPER_BETAS),
        *product(GRID, GRID),
    ]
    points = [*((betas, 0.5) for betas in sweeps), *((ones, noise) for noise in NOISES)]
    return list(dict.fromkeys(points))


def _conv_hierarchies(budget: str) -> list[Point]:
    """All pairs of betas, or the corners of their square."""
    betas = CONV_BETAS if budget == "gpu" else (CONV_BETAS[0], CONV_BETAS[-1])
    return list(product(betas, betas))


def cases(s: CollapseSetting) -> Mapping[str, Case[CollapseSetting]]:
    """Everything with the ELBO; with the released weighting what has reference figures, or everything at "gpu"."""
    forecast = {}
    for beta, noise in FORECAST:
        case = partial(plain, beta=beta, noise=noise, narrow=True)
        forecast[f"forecast beta {beta:g}, noise {noise:g}"] = case

    experiments = _conditional() | {
        f"E7 rho {rho:g}": partial(correlated, rho=rho) for rho in (1.0, 0.5, 0.25, 0.125, 0.0)
    }
    experiments |= _hierarchical(s.budget)
    experiments |= {"E9 scale learnt": plain, "E9 scale 0.5": partial(plain, scale=0.5)}
    released = {f"{name}{RELEASED}": partial(case, released=True) for name, case in experiments.items()}

    if s.budget == "smoke":
        chosen = {name: case for name, case in (forecast | experiments).items() if name.startswith(SMOKE)}
        one = f"E5 beta 1, noise 1{RELEASED}"
        return chosen | {one: released[one]}
    if s.budget == "gpu":
        return forecast | experiments | released
    return forecast | experiments | {name: case for name, case in released.items() if name in REFERENCE}


def _conditional() -> dict[str, AnyCase]:
    """E6 with each kind of network, and E5."""
    digits = [partial(conditional, beta=1.0, noise=0.5, digit=digit) for digit in range(10)]
    named: dict[str, AnyCase] = {f"E6 digit {d}": case for d, case in enumerate(digits)}
    for network in ("linear", "CNN"):
        for digit, case in enumerate(digits):
            named[f"E6 {network} digit {digit}"] = partial(case, network=network)

    points = [*((beta, 1.0) for beta in BETAS), *((1.0, noise) for noise in NOISES)]
    for beta, noise in dict.fromkeys(points):
        named[f"E5 beta {beta:g}, noise {noise:g}"] = partial(conditional, beta=beta, noise=noise)
    return named


def _hierarchical(budget: str) -> dict[str, AnyCase]:
    """E8 with hidden layers and with convolutions."""
    named: dict[str, AnyCase] = {}
    for betas, noise in _hierarchies(budget):
        name = f"E8 betas {betas[0]:g} {betas[1]:g}, noise {noise:g}"
        named[name] = partial(hierarchical, betas=betas, noise=noise)

    for betas in _conv_hierarchies(budget):
        name = f"E8 CNN betas {betas[0]:g} {betas[1]:g}"
        named[name] = partial(hierarchical, betas=betas, noise=0.5, convolutional=True)
    return named


# Figures to hold ours against: closed forms, and with the released weighting training of
# one seed with short schedules. The paper's own tables are not at hand. (The errors of
# reconstructions in E7 are left out: not at the means.)
COLLAPSED, WIDE = "% collapsed (.1, .05)", "% collapsed (.5, .05)"
LINEAR = "linear KL, not centred"
REFERENCE: dict[str, Mapping[str, float]] = {
    f"E5 beta 0.1, noise 1{RELEASED}": {
        "KL": 12.8,
        "Burda AU": 7,
        COLLAPSED: 56,
        "NLL": 559,
    },
    f"E5 beta 1, noise 1{RELEASED}": {
        "KL": 1.82,
        "Burda AU": 2,
        COLLAPSED: 88,
        "NLL": 554,
    },
    f"E5 beta 1, noise 0.25{RELEASED}": {
        "KL": 16.5,
        "Burda AU": 14,
        COLLAPSED: 25,
        "NLL": -127,
    },
    f"E6 digit 0{RELEASED}": {"KL": 12.2, "released AU": 0.77},
    f"E6 digit 1{RELEASED}": {"KL": 4.7, "released AU": 0.33},
    f"E6 digit 2{RELEASED}": {"KL": 17.1, "released AU": 0.99},
    f"E6 digit 4{RELEASED}": {"KL": 12.1, "released AU": 0.78},
    f"E6 digit 7{RELEASED}": {"KL": 11.4, "released AU": 0.70},
    f"E7 rho 1{RELEASED}": {"KL": 0.11, "NLL": 29, WIDE: 100, "released AU": 0.006},
    f"E7 rho 0.25{RELEASED}": {"KL": 66.7, "NLL": 157, WIDE: 14, "released AU": 0.987},
    f"E8 betas 1 1, noise 0.5{RELEASED}": {
        "KL": 7.9,
        "Burda AU": 16,
        "error through z2": 33.0,
    },
    f"E8 betas 1 0.1, noise 0.5{RELEASED}": {
        "KL": 25.5,
        "Burda AU": 16,
        "error through z2": 27.3,
    },
    f"E8 betas 0.1 1, noise 0.5{RELEASED}": {
        "KL": 0.0,
        "Burda AU": 0,
        "error through z2": 57.6,
    },
    f"E8 betas 1 1, noise 0.25{RELEASED}": {
        "KL": 17.1,
        "Burda AU": 16,
        "error through z2": 28.1,
    },
    "E5 beta 0.1, noise 1": {LINEAR: 17.76},
    "E5 beta 1, noise 1": {LINEAR: 1.54},
    "E5 beta 1, noise 0.25": {LINEAR: 21.52},
    "E6 digit 0": {LINEAR: 8.12},
    "E6 digit 1": {LINEAR: 2.90},
    "E6 digit 2": {LINEAR: 10.19},
    "E6 digit 4": {LINEAR: 8.59},
    "E6 digit 7": {LINEAR: 8.10},
    "E7 rho 1": {LINEAR: 0.0},
    "E7 rho 0.25": {LINEAR: 70.9},
}


def remark(s: CollapseSetting) -> str:
    """What a reader of the figures must know."""
    return (
        "Lines marked published are reference figures, not the paper's, whose tables are not at hand: closed forms in "
        f"the column {LINEAR!r}, else one seed of short schedules with the released weighting, to be met within 30% or "
        "half a nat (KL), 2 units (AU), 10% (error through z2). KL, AU and errors are of test images (E7: the training "
        "data), of z2 for E8; squared errors at the means of all latents. Burda AU: units with Var E[z|x] > 0.01; "
        "released AU: share of (datum, unit) pairs with KL >= 0.01."
    )


def summary(findings: Findings) -> list[str]:
    """Whether the forecasts rank the settings as training does."""
    # From a line's name to what its cases' names begin with; ReLU pairs go by the
    # experiment's number alone.
    sweeps = {
        "forecast": "forecast",
        "E6": "E6 digit",
        "E6 linear": "E6 linear",
        "E6 CNN": "E6 CNN",
        "E5": "E5",
        "E7": "E7",
        "E8": "E8 betas",
        "E8 CNN": "E8 CNN",
    }

    lines = []
    for label, begin in sweeps.items():
        if label.startswith("E6"):
            lines.append(rank_correlation(findings, begin, LINEAR, label=label))
        lines.append(rank_correlation(findings, begin, label=label))
    return [line for line in lines if line is not None]


POSTERIOR_COLLAPSE = Study(
    "posterior_collapse",
    "which non-linear pairs collapse, beside the linear forecast",
    ("mnist", "fashion_mnist", "digits"),
    setting,
    cases,
    {"mnist": REFERENCE},
    remark,
    summary,
)
