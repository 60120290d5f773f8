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
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from pyro_vaes.diagnostics.particles import Draws, Particles
from pyro_vaes.diagnostics.sites import Args, aligned, holds
from pyro_vaes.guides import find_latents
from pyro_vaes.programs import Program, Sites, is_auxiliary, was_observed

__all__ = ["Calibration", "calibration"]

MakeArguments = Callable[[Mapping[str, Tensor], Args], Args]


@dataclass(frozen=True)
class Calibration:
    """Ranks of N simulated truths among L draws of the guide; prints a table.

    Attributes:
        ranks: From 0 to L, of each number of the latents and, last, of the log joint density: ``(N, D + 1)``.
        density_ranks: Number of draws whose density log q exceeds that of the truth, from 0 to L: ``(N,)``.
        names: Of the D + 1 columns of ``ranks``.
        num_draws: L.
    """

    ranks: Tensor
    density_ranks: Tensor
    names: tuple[str, ...]
    num_draws: int

    @property
    def num_simulations(self) -> int:
        """N."""
        return len(self.ranks)

    def p_values(self, bins: int = 20) -> Tensor:
        """Of the chi-square test that each column of ranks is uniform, ``(D + 1,)``.

        Arguments:
            bins: Of neighbouring ranks; fewer where there would be less than 10 truths in each.
        """
        bins = max(2, min(bins, self.num_draws + 1, self.num_simulations // 10))
        edges = np.round(np.linspace(0, self.num_draws + 1, bins + 1))
        expected = np.diff(edges) / (self.num_draws + 1) * self.num_simulations
        counts = [np.histogram(column, edges - 0.5)[0] for column in self.ranks.T.numpy()]
        return torch.tensor([float(scipy.stats.chisquare(count, expected).pvalue) for count in counts])

    def coverage(self, levels: Tensor | Sequence[float]) -> Tensor:
        """How often the region of highest density log q with a given credibility holds the truth: equal if calibrated.

        Above the level the guide is too wide (conservative), below it too narrow or off.

        Arguments:
            levels: Credibilities in [0, 1], ``(C,)``.

        Returns:
            Shares of the simulations, ``(C,)``.
        """
        levels = _checked(levels)
        return _overlap(self.density_ranks.unsqueeze(-1), torch.zeros_like(levels), levels, self.num_draws).mean(0)

    def central_coverage(self, levels: Tensor | Sequence[float]) -> Tensor:
        """The same of the central intervals between quantiles of draws, for each column of ranks: ``(D + 1, C)``."""
        levels = _checked(levels)
        low, high = (1 - levels) / 2, (1 + levels) / 2
        return _overlap(self.ranks.unsqueeze(-1), low, high, self.num_draws).mean(0)

    def __str__(self) -> str:
        levels = [0.5, 0.9]
        width = max(14, *(len(name) + 2 for name in self.names))
        lines = [f"{'':<{width}}{'p (uniform)':>12}{'mean rank / L':>15}{'50 % interval':>15}{'90 % interval':>15}"]
        for name, p, rank, (half, most) in zip(
            self.names,
            self.p_values().tolist(),
            (self.ranks.double().mean(0) / self.num_draws).tolist(),
            self.central_coverage(levels).tolist(),
            strict=True,
        ):
            lines.append(f"{name:<{width}}{p:>12.3g}{rank:>15.3f}{half:>15.1%}{most:>15.1%}")
        half, most = self.coverage(levels).tolist()
        lines.append(f"{'highest density':<{width}}{'':>12}{'':>15}{half:>15.1%}{most:>15.1%}")
        smallest = self.p_values().min().item()
        lines.append(
            f"N = {self.num_simulations} simulations, L = {self.num_draws} draws; smallest p {smallest:.3g}, corrected "
            f"for {len(self.names)} tests {min(1.0, smallest * len(self.names)):.3g}"
        )
        return "\n".join(lines)

    __repr__ = __str__


def _checked(levels: Tensor | Sequence[float]) -> Tensor:
    levels = torch.as_tensor(levels, dtype=torch.float64).cpu()
    if levels.dim() != 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"levels are credibilities in [0, 1] with shape (C,), but got {levels}. Are they percentages?")
    return levels


def _overlap(ranks: Tensor, low: Tensor, high: Tensor, num_draws: int) -> Tensor:
    """The share of the cell [r, r + 1] / (L + 1) that lies in an interval: exact at every level, not at whole ranks."""
    left, cells = ranks.double(), num_draws + 1
    return (torch.minimum(left + 1, high * cells) - torch.maximum(left, low * cells)).clamp(min=0)


def calibration(
    model: Program,
    guide: Program,
    data: object,
    *,
    num_draws: int = 99,
    repeats: int = 1,
    arguments: MakeArguments | None = None,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
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
        num_draws: L, draws of the guide per simulation; L + 1 divisible by the bins of a histogram is best.
        repeats: Simulations per row of the data.
        arguments: A function from the simulated observations by site, each ``(B, *event)``, and the old arguments to
            the new arguments. By default an observed value takes the place of the argument that it equals, up to its
            shape.
        batch_size: Rows per pass.
        chunk_size: Draws per pass.
        seed: Seed of all draws.

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
    for name, number in (("num_draws", num_draws), ("repeats", repeats)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, but got {number}.")
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed)
    names: tuple[str, ...] = ()
    found: list[tuple[Tensor, Tensor]] = []
    seen = 0
    with particles.rows() as rows:
        for args in rows:
            size = 0
            for _ in range(repeats):
                prior = particles.prior(args, 1)
                new = _new(particles, prior, args, arguments)
                names, ranks, density_ranks = _infer(particles, prior, new, num_draws)
                size = len(ranks) if particles.limit is None else min(len(ranks), particles.limit - seen)
                found.append((ranks[:size].cpu(), density_ranks[:size].cpu()))
            seen += size
    ranks, density_ranks = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Calibration(ranks, density_ranks, names, num_draws)


def _infer(particles: Particles, prior: Sites, args: Args, num_draws: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names of the quantities, their ranks ``(B, D + 1)`` and the ranks of log q ``(B,)``, one truth per row."""
    chunks = [particles.draw(args, k) for k in particles.chunks(num_draws)]
    truth = {n: prior[n] for n in chunks[0].latents()}
    draws = {n: torch.cat([c.latents()[n]["value"] for c in chunks]) for n in truth}
    names, columns = [], []
    for name, site in truth.items():
        true, drawn = aligned(site, particles.plate), aligned({**site, "value": draws[name]}, particles.plate)
        columns.append(_rank(true[0].reshape(true.shape[1], -1), drawn.reshape(*drawn.shape[:2], -1)))  # (B, numbers)
        places = np.ndindex(*true.shape[2:]) if true.dim() > 2 else [()]
        names += [name + (f"[{','.join(map(str, place))}]" if place else "") for place in places]

    model = particles.pair.model
    log_p = particles.log_density(model, args, {n: s["value"] for n, s in truth.items()})  # (1, B)
    values = [{n: s["value"] for n, s in c.latents().items()} for c in chunks]
    drawn_log_p = torch.cat([particles.log_density(model, args, v) for v in values])  # (L, B)
    drawn_log_q = drawn_log_p - torch.cat([c.log_weights for c in chunks])
    below = _rank(_log_q(particles, args, chunks[0], truth)[0], drawn_log_q)
    ranks = torch.cat([*columns, _rank(log_p[0], drawn_log_p).unsqueeze(-1)], -1)
    return (*names, "log p(x, z)"), ranks, num_draws - below


def _rank(true: Tensor, drawn: Tensor) -> Tensor:
    """The rank of ``(...)`` among ``(L, ...)``; ties, as at the edge of a support, are broken at random."""
    ties = (drawn == true).sum(0)
    return (drawn < true).sum(0) + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


def _log_q(particles: Particles, args: Args, draws: Draws, truth: Sites) -> Tensor:
    """log q(z* | x), ``(1, B)``, through the auxiliary vector, if the guide computes its sites from one."""
    guide, given = particles.pair.guide, {n: s["value"] for n, s in truth.items()}
    auxiliary = [n for n, s in draws.guide_sites.items() if is_auxiliary(s)]
    if auxiliary:
        latents = find_latents(particles.pair.model, *args)
        vector = draws.guide_sites[auxiliary[0]]
        known = len(auxiliary) == 1 and vector["fn"].event_shape == (latents.numel,)
        if known:
            value = {auxiliary[0]: latents.join(given)}
            computed = particles.run(guide, args, 1, {n: {**vector, "value": v} for n, v in value.items()})
            known = all(torch.allclose(computed[n]["value"], v, rtol=1e-3, atol=1e-4) for n, v in given.items())
        if not known:
            raise ValueError(
                f"The guide draws the auxiliary sites {auxiliary}, and its density at given latents {list(given)} "
                "cannot be had from them: wanted one vector from which the latents are computed one to one, in order. "
                "Use a guide that samples the latents themselves?"
            )
        given = value
    log_q = particles.log_density(guide, args, given)
    if log_q.isnan().any():
        raise ValueError(
            "The guide's density at latents drawn from the prior is not a number; does its support leave some of them "
            "out, or do they overflow?"
        )
    return log_q


def _new(particles: Particles, prior: Sites, args: Args, arguments: MakeArguments | None) -> Args:
    """The programs' arguments with the simulated observations in their places."""
    observed = {n: s for n, s in prior.items() if was_observed(s)}
    if arguments is not None:
        return arguments({n: aligned(s, particles.plate)[0] for n, s in observed.items()}, args)
    new, rows = list(args), particles.fixed.index
    for name, site in observed.items():
        old, value = site["infer"]["obs"], site["value"][0]
        places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and holds(a, old, rows)]
        places = [i for i in places if args[i].data_ptr() == old.data_ptr()] or places  # type: ignore[attr-defined]
        if len(places) != 1 or value.numel() != old.numel():
            raise ValueError(
                f"The value of the observed site {name!r}, shape {tuple(old.shape)}, is "
                f"{'several' if places else 'none'} of the programs' arguments, so it is not known where a simulated "
                "one belongs. Pass arguments=lambda sites, args: ..., which returns the new arguments?"
            )
        argument = new[places[0]]
        assert isinstance(argument, Tensor)
        if argument.numel() == old.numel():
            new[places[0]] = value.reshape(argument.shape).to(argument.dtype)
        else:
            assert rows is not None
            new[places[0]] = argument.index_copy(0, rows, value.reshape(-1, *argument.shape[1:]).to(argument.dtype))
    return tuple(new)
