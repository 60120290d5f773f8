"""`evaluate`: the numbers of a run on held-out data."""

import json
import math
from typing import Any, NamedTuple

from torch import Tensor

from pyro_vaes.data import Split
from pyro_vaes.diagnostics import CollapseReport, LogLikelihood, collapse_report, log_likelihood

from .names import LIKELIHOODS
from .pictures import held_out
from .run_directory import Run, write_json

EVALUATION = "evaluation.json"


class Measured(NamedTuple):
    """Numbers on some rows of one part of the data, and the objects they came from."""

    part: Split
    likelihood: LogLikelihood
    collapse: CollapseReport
    numbers: dict[str, Any]

    def lines(self) -> list[str]:
        """Three lines for people: the bounds, the weights, the latents."""
        n = self.numbers
        bits = n["bits_per_dimension"]
        units = ", ".join(f"{name}: {site['active_units']} of {site['units']}" for name, site in n["sites"].items())

        khat = "no k-hat (needs at least 25 particles)"
        if n["khat_median"] is not None:
            khat = f"k-hat median {n['khat_median']:.2f}, above 0.7 for {n['khat_above_0.7']:.0%} of the data"

        return [
            f"{n['split']} ELBO {n['elbo']:.2f} ± {n['elbo_error']:.2f}, IW-{n['num_particles']} "
            f"{n['log_likelihood']:.2f} ± {n['log_likelihood_error']:.2f} nats per datum (N = {n['num_data']})"
            + (f", {bits:.3f} bits per dimension" if bits is not None else ""),
            f"importance weights: {khat}, median effective sample size {n['ess_median']:.1f} of {n['num_particles']}",
            f"active units {units}; KL {n['kl']:.2f} nats per datum",
        ]


def measure(
    run: Run, *, num_particles: int = 100, num_data: int = 1000, split: str | None = None, seed: int = 0
) -> Measured:
    """Measure a run and write `evaluation.json`; its weights stay as they are.

    Arguments:
        run: The run.
        num_particles: K of the importance-weighted estimate of log p(x).
        num_data: How many rows, drawn at random, since some published parts are sorted by class; always the same ones.
        split: `test`, `valid` or `train`; the first there is by default.
        seed: Seed of the draws.

    Raises:
        ValueError: If there is no such part, or a number is below 1.
    """
    if num_particles < 1 or num_data < 1:
        raise ValueError(f"--particles is {num_particles} and --num-data {num_data}, but at least 1 of each is wanted.")
    name, part = held_out(run.data, split)
    part = part.take(num_data, seed=0)
    likelihood = log_likelihood(run.model, run.guide, part, num_particles, seed=seed)
    collapse = collapse_report(run.model, run.guide, part, seed=seed)

    elbo, weighted = likelihood.elbo, likelihood.log_likelihood
    nats_per_bit = math.prod(run.data.image_shape) * math.log(2)
    discrete = LIKELIHOODS[str(run.options.likelihood)].discrete
    khat = likelihood.khat[~likelihood.khat.isnan()]
    numbers: dict[str, Any] = {
        "split": name,
        "num_data": len(part),
        "num_particles": num_particles,
        "elbo": elbo.mean().item(),
        "elbo_error": _error(elbo),
        "log_likelihood": weighted.mean().item(),
        "log_likelihood_error": _error(weighted),
        "monte_carlo_error": likelihood.standard_error.square().sum().sqrt().item() / len(weighted),
        "bits_per_dimension": -weighted.mean().item() / nats_per_bit if discrete else None,
        "ess_median": likelihood.ess.median().item(),
        "khat_median": khat.median().item() if len(khat) else None,
        "khat_above_0.5": _share_above(0.5, khat),
        "khat_above_0.7": _share_above(0.7, khat),
        "kl": sum(site.total_kl for site in collapse.sites.values()),
        "sites": {
            site: {
                "units": found.mean_variance.numel(),
                "active_units": found.active_units,
                "active_pairs": found.active_pairs,
                "kl": found.kl.tolist(),
                "mutual_information": found.mutual_information,
                "aggregate_kl": found.aggregate_kl,
            }
            for site, found in collapse.sites.items()
        },
        "space": run.data.space,
    }
    # JSON has no NaN and no infinity: None in their place
    finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    write_json(run.directory / EVALUATION, finite)
    return Measured(part, likelihood, collapse, numbers)


def _share_above(level: float, values: Tensor) -> float | None:
    return (values > level).double().mean().item() if len(values) else None


def _error(values: Tensor) -> float:
    """Standard error of a mean over data."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
