"""`evaluate`: the numbers of a run on held-out data."""

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_vaes.cli.names import LIKELIHOODS
from pyro_vaes.cli.pictures import held_out
from pyro_vaes.cli.run_directory import Run, write_json
from pyro_vaes.data import Split
from pyro_vaes.diagnostics import CollapseReport, LogLikelihood, collapse_report, log_likelihood

__all__ = ["EVALUATION", "Measured", "measure"]

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Measured:
    """Numbers on some rows of one part of the data, and the objects they came from."""

    split: str
    part: Split
    likelihood: LogLikelihood
    collapse: CollapseReport
    numbers: dict[str, object]

    def lines(self) -> list[str]:
        """Three lines for people: the bounds, the weights, the latents."""
        n = self.numbers
        bits = f", {n['bits_per_dimension']:.3f} bits per dimension" if n["bits_per_dimension"] is not None else ""
        used = ", ".join(f"{s}: {c.active_units} of {c.mean_variance.numel()}" for s, c in self.collapse.sites.items())
        return [
            f"{self.split} ELBO {n['elbo']:.2f} ± {n['elbo_error']:.2f}, IW-{n['num_particles']} "
            f"{n['log_likelihood']:.2f} ± {n['log_likelihood_error']:.2f} nats per datum (N = {n['num_data']}){bits}",
            f"importance weights: {_khat(n)}, median effective sample size {n['ess_median']:.1f} of "
            f"{n['num_particles']}",
            f"active units {used}; KL {n['kl']:.2f} nats per datum",
        ]


def _khat(numbers: dict[str, object]) -> str:
    if numbers["khat_median"] is None:
        return "no k-hat (needs at least 25 particles)"
    above = float(str(numbers["khat_above_0.7"]))
    return f"k-hat median {numbers['khat_median']:.2f}, above 0.7 for {above:.0%} of the data"


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
    model, guide = run.model, run.guide
    likelihood = log_likelihood(model, guide, part, num_particles, seed=seed)
    collapse = collapse_report(model, guide, part, seed=seed)
    discrete = LIKELIHOODS[str(run.options.likelihood)].discrete
    khat = likelihood.khat[~likelihood.khat.isnan()]
    elbo, iw = likelihood.elbo, likelihood.log_likelihood
    pixels = math.prod(run.data.image_shape)
    numbers: dict[str, object] = {
        "split": name,
        "num_data": len(part),
        "num_particles": num_particles,
        "elbo": elbo.mean().item(),
        "elbo_error": _error(elbo),
        "log_likelihood": iw.mean().item(),
        "log_likelihood_error": _error(iw),
        "monte_carlo_error": likelihood.standard_error.square().sum().sqrt().item() / len(iw),
        "bits_per_dimension": -iw.mean().item() / (pixels * math.log(2)) if discrete else None,
        "ess_median": likelihood.ess.median().item(),
        "khat_median": khat.median().item() if len(khat) else None,
        "khat_above_0.5": (khat > 0.5).double().mean().item() if len(khat) else None,
        "khat_above_0.7": (khat > 0.7).double().mean().item() if len(khat) else None,
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
    write_json(run.directory / EVALUATION, {k: _finite(v) for k, v in numbers.items()})
    return Measured(name, part, likelihood, collapse, numbers)


def _error(values: Tensor) -> float:
    """Standard error of a mean over data."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: None in their place."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
