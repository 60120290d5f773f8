r"""The inference gap of an amortised guide, split into what its family and what its encoder cost.

    log p(x) - L[q]  =  (log p(x) - L[q*])  +  (L[q*] - L[q]),    q* = argmax of L over the family, for x alone
    inference gap       approximation gap      amortisation gap

The family is the diagonal normal, or the normal with full covariance, over all latents of a datum in their
unconstrained space. q* is found for every datum by Adam on the path derivative of its bound (which has no noise left
where q* is the posterior), with a step size that decays to zero, and is evaluated with fresh noise.

References:
    | Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018)
    | https://arxiv.org/abs/1801.03558
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pyro_vaes.guides import find_latents
from pyro_vaes.programs import Program

from ..particles import Particles
from ..sites import Args
from ..summaries import mean_and_error, require_positive, standard_error
from .likelihood import LogLikelihood, summarise
from .local_normal import LocalNormal, climb, moments_at_start


@dataclass(frozen=True)
class InferenceGap:
    """Bounds and evidence per datum, each a tensor with shape ``(N,)``, in nats; prints the gaps' means.

    Attributes:
        log_evidence: log p(x) as given, or its importance-sampling estimate.
        log_evidence_error: Standard error of that; 0 where it was given.
        khat: Pareto shape of the weights behind that estimate, to be trusted below 0.7; nan where it was given.
        optimised_elbo: L[q*], estimated.
        optimised_elbo_error: Its standard error.
        amortised_elbo: L[q] of the guide, estimated.
        amortised_elbo_error: Its standard error.
        history: Mean over the data of the bound at each step of the optimisation, ``(steps,)``; flat at its end if the
            steps were enough.
        num_particles: Draws behind each estimate.
        full_covariance: Whether q* is a normal with full covariance.
    """

    log_evidence: Tensor
    log_evidence_error: Tensor
    khat: Tensor
    optimised_elbo: Tensor
    optimised_elbo_error: Tensor
    amortised_elbo: Tensor
    amortised_elbo_error: Tensor
    history: Tensor
    num_particles: int
    full_covariance: bool

    @property
    def approximation(self) -> Tensor:
        """log p(x) - L[q*], ``(N,)``."""
        return self.log_evidence - self.optimised_elbo

    @property
    def approximation_error(self) -> Tensor:
        """Its standard error, ``(N,)``; an overstatement where the evidence is estimated from the same draws of q*."""
        return torch.hypot(self.log_evidence_error, self.optimised_elbo_error)

    @property
    def amortisation(self) -> Tensor:
        """L[q*] - L[q], ``(N,)``; negative where the guide is richer than the family of q*."""
        return self.optimised_elbo - self.amortised_elbo

    @property
    def amortisation_error(self) -> Tensor:
        """Its standard error, ``(N,)``."""
        return torch.hypot(self.optimised_elbo_error, self.amortised_elbo_error)

    @property
    def inference(self) -> Tensor:
        """log p(x) - L[q], the sum of both, ``(N,)``."""
        return self.log_evidence - self.amortised_elbo

    def __repr__(self) -> str:
        family = "full-covariance" if self.full_covariance else "diagonal"
        given = (self.log_evidence_error == 0).all() and self.khat.isnan().all()
        evidence = "as given" if given else f"by IW-{self.num_particles}"
        if not self.khat.isnan().all():
            evidence += f", k-hat > 0.7 for {(self.khat > 0.7).double().mean().item():.1%}"
        return (
            f"inference gap {mean_and_error(self.inference)} nats per datum (N = {len(self.inference)})\n"
            f"  approximation {mean_and_error(self.approximation)} (best {family} normal, log p(x) {evidence})\n"
            f"  amortisation  {mean_and_error(self.amortisation)}"
        )


def inference_gap(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 1000,
    *,
    log_evidence: Tensor | None = None,
    full_covariance: bool = False,
    start: Literal["guide", "prior"] = "guide",
    steps: int = 500,
    lr: float = 0.1,
    step_particles: int = 8,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
    unit: str | None = None,
) -> InferenceGap:
    """Split log p(x) - ELBO of each datum into approximation gap and amortisation gap.

    Scales of sites (subsampling plates, ``poutine.scale``, KL weights) do not enter, nothing of the pair changes, and
    the generators' states come back afterwards. Without ``log_evidence``, log p(x) is estimated by importance sampling
    with q* and with the guide as the proposal, and the estimate with the smaller standard error is taken; the larger
    one would often be an accident of a heavy tail. Each is a lower bound in expectation, and a low one where the
    proposal is much narrower than the posterior, as diagonal ones may be: look at ``khat``.

    Arguments:
        model: Any program whose latents are continuous and lie in one data plate.
        guide: The amortised guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_particles: Draws K behind each bound and each estimate of log p(x).
        log_evidence: log p(x) of each datum in nats, ``(N,)``, where it is known better: exactly, or from annealed
            importance sampling.
        full_covariance: Whether the family is the full-covariance normal rather than the diagonal one.
        start: Whether q* starts from the moments of the guide's draws or of the prior's.
        steps: Steps of Adam for each datum.
        lr: Its first step size, decaying to 0 as a cosine.
        step_particles: Draws per step and datum.
        batch_size: Rows per pass.
        chunk_size: Particles per pass.
        seed: Seed of all draws.
        unit: Name of the plate whose rows are the data, where there are several.

    Raises:
        ValueError: A number is out of its range, ``log_evidence`` is not one number per datum, or the model's latents
            are not continuous in one data plate.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vaes.guides import AmortizedNormal
        >>> from pyro_vaes.nn import NormalHead
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x)
        >>> gap = inference_gap(model, AmortizedNormal(model, NormalHead(2, 1)), torch.randn(5, 2), steps=10)
        >>> gap.amortisation.shape
        torch.Size([5])
    """
    require_positive(steps=steps, step_particles=step_particles, num_particles=num_particles)
    if not lr > 0:
        raise ValueError(f"lr is Adam's first step size and must be positive, but got {lr}.")
    if start not in ("guide", "prior"):
        raise ValueError(f"start must be 'guide' or 'prior', but got {start!r}.")

    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed, unit=unit)

    def optimise_and_evaluate(args: Args) -> InferenceGap:
        latents = find_latents(particles.model, *args)
        loc, scale = moments_at_start(particles, args, latents, from_guide=start == "guide")
        family = LocalNormal(latents, loc, scale, full_covariance=full_covariance)
        history = climb(family, particles, args, steps, lr, step_particles)
        return _evaluate(family, history, particles, args, num_particles)

    gap = particles.joined(particles.for_each_pass(optimise_and_evaluate))
    if log_evidence is not None:
        gap = _with_evidence(gap, log_evidence)
    return replace(gap, history=gap.history.mean(0))


def _with_evidence(gap: InferenceGap, log_evidence: Tensor) -> InferenceGap:
    """The gap from an evidence that was given instead of estimated."""
    estimate = gap.log_evidence
    if log_evidence.shape != estimate.shape:
        raise ValueError(
            f"log_evidence has shape {tuple(log_evidence.shape)}, but there are {len(estimate)} data; pass "
            "log p(x) of each of them, in nats."
        )

    return replace(
        gap,
        log_evidence=log_evidence.detach().cpu().to(estimate.dtype),
        log_evidence_error=torch.zeros_like(estimate),
        khat=torch.full_like(estimate, math.nan),
    )


def _evaluate(
    family: LocalNormal, history: Tensor, particles: Particles, args: Args, num_particles: int
) -> InferenceGap:
    """The bounds of q* and of the guide with fresh noise, and the surer of their two estimates of log p(x).

    The history is still that of each datum, ``(B, steps)``.
    """

    def evaluate(guide: Program | None) -> tuple[LogLikelihood, Tensor]:
        weights = particles.log_weights(args, num_particles, guide).double()
        return summarise(weights), standard_error(weights)

    best, best_error = evaluate(family)
    amortised, amortised_error = evaluate(None)

    surer = best.standard_error <= amortised.standard_error
    return InferenceGap(
        log_evidence=torch.where(surer, best.log_likelihood, amortised.log_likelihood),
        log_evidence_error=torch.where(surer, best.standard_error, amortised.standard_error),
        khat=torch.where(surer, best.khat, amortised.khat),
        optimised_elbo=best.elbo,
        optimised_elbo_error=best_error,
        amortised_elbo=amortised.elbo,
        amortised_elbo_error=amortised_error,
        history=history.mT,
        num_particles=num_particles,
        full_covariance=family.full_covariance,
    )
