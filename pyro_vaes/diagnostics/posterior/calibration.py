r"""Simulation-based calibration of an amortised guide: does q(z | x) cover the truth as often as it says?

    z*, x ~ p(z, x),    z_1 .. z_L ~ q(z | x),    rank of f(z*) among f(z_1) .. f(z_L)

If q is the posterior, every rank is uniform on 0 .. L: of each number of z, and of the log joint density, which also
sees the data and so notices a guide that only returns the prior. The rank of log q gives the expected coverage: the
credibility of the smallest region of highest density that holds the truth is uniform too.

References:
    | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
      (Talts, Betancourt, Simpson, Vehtari & Gelman, 2018)
    | https://arxiv.org/abs/1804.06788
    | A Trust Crisis In Simulation-Based Inference? Your Posterior Approximations Can Be Unfaithful
      (Hermans, Delaunoy, Rozet, Wehenkel, Begy & Louppe, 2022)
    | https://arxiv.org/abs/2110.06581
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from pyro_vaes.guides import find_latents
from pyro_vaes.programs import Program, Sites, is_auxiliary, replaced_observation, was_observed
from pyro_vaes.tables import text_table

from ..particles import Draws, Particles, values_of
from ..sites import Args, aligned, holders, vector_site
from ..summaries import require_positive

MakeArguments = Callable[[Mapping[str, Tensor], Args], Args]


@dataclass(frozen=True)
class Calibration:
    """Ranks of N simulated truths among L draws of the guide; prints a table.

    Attributes:
        ranks: From 0 to L, of each number of the latents and, last, of the log joint density: ``(N, D + 1)``.
        density_ranks: Number of draws whose density log q exceeds that of the truth, from 0 to L: ``(N,)``.
        names: Of the D + 1 columns of ``ranks``.
        num_samples: L.
    """

    ranks: Tensor
    density_ranks: Tensor
    names: tuple[str, ...]
    num_samples: int

    @property
    def num_simulations(self) -> int:
        """N."""
        return len(self.ranks)

    def p_values(self, bins: int = 20) -> Tensor:
        """Of the chi-square test that each column of ranks is uniform, ``(D + 1,)``.

        Arguments:
            bins: Of neighbouring ranks; fewer where there would be less than 10 truths in each.
        """
        bins = max(2, min(bins, self.num_samples + 1, self.num_simulations // 10))
        edges = np.round(np.linspace(0, self.num_samples + 1, bins + 1))
        expected = np.diff(edges) / (self.num_samples + 1) * self.num_simulations
        counts = [np.histogram(column, edges - 0.5)[0] for column in self.ranks.T.numpy()]
        return torch.tensor(scipy.stats.chisquare(counts, expected, axis=1).pvalue.tolist())

    def coverage(self, levels: Tensor | Sequence[float]) -> Tensor:
        """How often the region of highest density log q with a given credibility holds the truth: equal if calibrated.

        Above the level the guide is too wide (conservative), below it too narrow or off.

        Arguments:
            levels: Credibilities in [0, 1], ``(C,)``.

        Returns:
            Shares of the simulations, ``(C,)``.
        """
        levels = _checked(levels)
        return _overlap(self.density_ranks.unsqueeze(-1), torch.zeros_like(levels), levels, self.num_samples).mean(0)

    def central_coverage(self, levels: Tensor | Sequence[float]) -> Tensor:
        """The same of the central intervals between quantiles of draws, for each column of ranks: ``(D + 1, C)``."""
        levels = _checked(levels)
        low, high = (1 - levels) / 2, (1 + levels) / 2
        return _overlap(self.ranks.unsqueeze(-1), low, high, self.num_samples).mean(0)

    def __repr__(self) -> str:
        levels = [0.5, 0.9]
        p_values = self.p_values()
        mean_ranks = self.ranks.double().mean(0) / self.num_samples
        central = self.central_coverage(levels).tolist()
        width = max(14, *(len(name) + 2 for name in self.names))

        rows: list[tuple[object, ...]] = []
        for name, p, rank, shares in zip(self.names, p_values, mean_ranks, central, strict=True):
            rows.append((name, p, rank, *shares))
        rows.append(("highest density", None, None, *self.coverage(levels).tolist()))
        columns = "p (uniform):>12.3g | mean rank / L:>15.3f | 50 % interval:>15.1% | 90 % interval:>15.1%"
        lines = text_table(f" :<{width} | {columns}", rows)

        smallest, tests = p_values.min().item(), len(self.names)
        lines.append(
            f"N = {self.num_simulations} simulations, L = {self.num_samples} draws; smallest p {smallest:.3g}, "
            f"corrected for {tests} tests {min(1.0, smallest * tests):.3g}"
        )
        return "\n".join(lines)


def _checked(levels: Tensor | Sequence[float]) -> Tensor:
    levels = torch.as_tensor(levels, dtype=torch.float64).cpu()
    if levels.dim() != 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"levels are credibilities in [0, 1] with shape (C,), but got {levels}. Are they percentages?")
    return levels


def _overlap(ranks: Tensor, low: Tensor, high: Tensor, num_samples: int) -> Tensor:
    """The share of the cell [r, r + 1] / (L + 1) that lies in an interval: exact at every level, not at whole ranks."""
    left, cells = ranks.double(), num_samples + 1
    return (torch.minimum(left + 1, high * cells) - torch.maximum(left, low * cells)).clamp(min=0)


def calibration(
    model: Program,
    guide: Program,
    data: object,
    num_samples: int = 99,
    *,
    repeats: int = 1,
    arguments: MakeArguments | None = None,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
    unit: str | None = None,
) -> Calibration:
    """Simulate from the model, infer with the guide, and rank the truths among the guide's draws.

    For each row of the data the model draws latents and an observation; covariates among the arguments keep their
    values, so a conditional model is calibrated given those. Nothing of the pair changes, and the generators' states
    come back afterwards. The simulations are the model's own: that the guide is calibrated on them says nothing about
    data which the model does not describe.

    Arguments:
        model: Any program whose latents are continuous and lie in one data plate.
        guide: The guide, called with the arguments in which the simulated observations stand.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader. Observed values
            among them matter by their shape alone.
        num_samples: L, draws of the guide per simulation; L + 1 divisible by the bins of a histogram is best.
        repeats: Simulations per row of the data.
        arguments: A function from the simulated observations by site, each ``(B, *event)``, and the old arguments to
            the new arguments. By default an observed value takes the place of the argument that it equals, up to its
            shape.
        batch_size: Rows per pass.
        chunk_size: Draws per pass.
        seed: Seed of all draws.
        unit: Name of the plate whose rows are the data, where there are several.

    Raises:
        ValueError: A number is below 1, an observed value is none of the arguments, the latents are not continuous in
            one data plate, or the density of the guide cannot be had at the truth.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> result = calibration(model, guide, torch.zeros(500))
        >>> result.names, bool((result.p_values() > 0.001).all())
        (('z', 'log p(x, z)'), True)
    """
    require_positive(num_samples=num_samples, repeats=repeats)

    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed, unit=unit)

    def simulate_and_rank(args: Args) -> list[Calibration]:
        found = []
        for _ in range(repeats):
            prior = particles.prior(args, 1)
            new_args = _new_arguments(particles, prior, args, arguments)
            found.append(_infer(particles, prior, new_args, num_samples))
        return found

    passes = particles.for_each_pass(simulate_and_rank)
    found = [particles.joined(parts) for parts in zip(*passes, strict=True)]
    return replace(
        found[0],
        ranks=torch.cat([each.ranks for each in found]),
        density_ranks=torch.cat([each.density_ranks for each in found]),
    )


def _infer(particles: Particles, prior: Sites, args: Args, num_samples: int) -> Calibration:
    """The ranks of one truth per row."""
    chunks = [particles.draw(args, k) for k in particles.chunks(num_samples)]
    drawn = [values_of(chunk.latents()) for chunk in chunks]
    truth = {name: prior[name] for name in drawn[0]}

    names, columns = [], []
    for name, site in truth.items():
        true = aligned(site, particles.plate)[0]  # (B, *event)
        draws = aligned({**site, "value": torch.cat([values[name] for values in drawn])}, particles.plate)
        columns.append(_rank(true.reshape(len(true), -1), draws.reshape(*draws.shape[:2], -1)))  # (B, numbers)
        for place in np.ndindex(*true.shape[1:]):
            names.append(name + (f"[{','.join(map(str, place))}]" if place else ""))

    model, true_values = particles.model, values_of(truth)
    log_p = particles.log_density(model, args, true_values)  # (1, B)
    drawn_log_p = torch.cat([particles.log_density(model, args, values) for values in drawn])  # (L, B)
    drawn_log_q = drawn_log_p - torch.cat([chunk.log_weights for chunk in chunks])

    below = _rank(_log_q(particles, args, chunks[0], true_values)[0], drawn_log_q)
    columns.append(_rank(log_p[0], drawn_log_p).unsqueeze(-1))
    names.append("log p(x, z)")
    return Calibration(torch.cat(columns, -1), num_samples - below, tuple(names), num_samples)


def _rank(true: Tensor, drawn: Tensor) -> Tensor:
    """The rank of ``(...)`` among ``(L, ...)``; ties, as at the edge of a support, are broken at random."""
    ties = (drawn == true).sum(0)
    return (drawn < true).sum(0) + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


def _log_q(particles: Particles, args: Args, draws: Draws, given: dict[str, Tensor]) -> Tensor:
    """log q(z* | x), ``(1, B)``, through the auxiliary vector, if the guide computes its sites from one."""
    auxiliary = [n for n, s in draws.guide_sites.items() if is_auxiliary(s)]
    if auxiliary:
        latents = find_latents(particles.model, *args)
        name = vector_site(draws.guide_sites, latents)
        if name is None:
            raise ValueError(
                f"The guide draws the auxiliary sites {auxiliary}, and its density at given latents "
                f"{list(given)} cannot be had from them: wanted one vector from which the latents are computed one to "
                "one, in order. Use a guide that samples the latents themselves?"
            )
        given = {name: latents.join(given)}

    log_q = particles.log_density(particles.guide, args, given)
    if log_q.isnan().any():
        raise ValueError(
            "The guide's density at latents drawn from the prior is not a number; does its support leave some of them "
            "out, or do they overflow?"
        )
    return log_q


def _new_arguments(particles: Particles, prior: Sites, args: Args, arguments: MakeArguments | None) -> Args:
    """The programs' arguments with the simulated observations in their places."""
    if arguments is not None:
        return arguments({n: x[0] for n, x in particles.simulated(prior).items()}, args)

    new, rows = list(args), particles.fixed.index
    for name, site in prior.items():
        if not was_observed(site):
            continue
        value = site["value"][0]
        old = replaced_observation(site)
        place, argument = _place(name, args, old, rows, value.numel())
        value = value.to(argument.dtype)

        if argument.numel() == value.numel():
            new[place] = value.reshape(argument.shape)
        else:  # the programs draw these rows from all data
            assert rows is not None
            new[place] = argument.index_copy(0, rows, value.reshape(-1, *argument.shape[1:]))
    return tuple(new)


def _place(name: str, args: Args, old: Tensor, rows: Tensor | None, size: int) -> tuple[int, Tensor]:
    """The argument that was observed and its position: the very tensor, or the only one equal to it."""
    places = holders(args, old, rows)
    if len(places) != 1 or size != old.numel():
        raise ValueError(
            f"The value of the observed site {name!r}, shape {tuple(old.shape)}, is "
            f"{'several' if places else 'none'} of the programs' arguments, so it is not known where a simulated "
            "one belongs. Pass arguments=lambda sites, args: ..., which returns the new arguments?"
        )
    return next(iter(places.items()))
