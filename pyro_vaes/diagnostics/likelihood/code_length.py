r"""How long a code of the data is, in nats and in bits: as a two-part code, and with bits back.

    C_naive    = E_q[-log p(z) - log p(x | z)]                   first z, then x given z
    C_bitsback = E_q[log q(z | x) - log p(z) - log p(x | z)]     = C_naive - H(q(z | x)) = -ELBO

The sender of a two-part code draws z from q(z | x), and the H(q(z | x)) nats that this took can be given back. The code
of a continuous z is relative to some precision, which drops out of the second length: only that one is meaningful by
itself. It is at least H(data) + E KL(q(z | x) || p(z | x)), so every use of z must save more than it costs.

References:
    | Variational Lossy Autoencoder (Chen et al., 2017), section 2.1
    | https://arxiv.org/abs/1611.02731
    | Keeping Neural Networks Simple by Minimizing the Description Length of the Weights (Hinton & van Camp, 1993)
    | https://dl.acm.org/doi/10.1145/168304.168306
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.programs import DataPlate, Program
from pyro_vaes.tables import text_table

from ..particles import Draws, Particles
from ..sites import Args, aligned
from ..summaries import require_positive, standard_error


@dataclass(frozen=True)
class CodeLength:
    """Code lengths per datum in nats, tensors with shape ``(N,)``.

    Attributes:
        reconstruction: E_q[-log p(x | z)], what x costs given z.
        latents: E_q[-log p(z)], what z costs.
        entropy: H(q(z | x)), what comes back.
        num_elements: Observed values per datum, for bits per dimension.
    """

    reconstruction: Tensor
    latents: Tensor
    entropy: Tensor
    num_elements: int

    @property
    def two_part(self) -> Tensor:
        """C_naive."""
        return self.reconstruction + self.latents

    @property
    def bits_back(self) -> Tensor:
        """C_bitsback, the negative bound."""
        return self.two_part - self.entropy

    @property
    def code(self) -> Tensor:
        """KL(q(z | x) || p(z)), the part of C_bitsback that z takes: the size of the lossy code."""
        return self.latents - self.entropy

    def __repr__(self) -> str:
        parts = {
            "x given z": self.reconstruction,
            "z": self.latents,
            "two-part code": self.two_part,
            "back: H(q)": -self.entropy,
            "bits-back code (-ELBO)": self.bits_back,
            "of which z (KL)": self.code,
        }
        rows = []
        for name, part in parts.items():
            mean = part.mean().item()
            bits = mean / math.log(2)
            rows.append((name, mean, standard_error(part).item(), bits, bits / self.num_elements))

        columns = " :<24 | nats:>10.3f | ±:>8.3f | bits:>10.3f | bits/dim:>10.4f"
        lines = text_table(columns, rows)
        lines.append(f"per datum, N = {len(self.latents)}; ± is the standard error over the data")
        return "\n".join(lines)


def code_length(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 8,
    *,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
    unit: str | None = None,
) -> CodeLength:
    """Measure both code lengths of a pair on data.

    The entropy is a closed form where the guide's distributions have one, else an average of -log q over the draws.

    Arguments:
        model: The model; latents and data in one data plate.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_particles: Draws of the latents per datum.
        batch_size: Rows per pass.
        chunk_size: Draws per pass.
        seed: Seed of the draws.
        unit: Name of the plate whose rows are the data, where there are several.

    Raises:
        ValueError: ``num_particles`` is below 1, or the pair does not fit the data.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> vae = VAE(Chain(MLP(64, [32], 32), NormalHead(32, 4)), MLP(4, [32], 64), BernoulliLikelihood(), 4)
        >>> report = code_length(vae.model, vae.guide, torch.zeros(5, 64))
        >>> torch.allclose(report.bits_back, report.reconstruction + report.code)
        True
    """
    require_positive(num_particles=num_particles)

    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed, unit=unit)

    def measured(args: Args) -> CodeLength:
        # distributions of single passes are not stacked: each pass is measured by itself
        sizes = particles.chunks(num_particles) if particles.vectorized else [1] * num_particles
        draws = [particles.draw(args, size) for size in sizes]

        observed = draws[0].observations().values()
        num_elements = sum(math.prod(aligned(s, particles.plate).shape[2:]) for s in observed)
        terms = torch.cat([_terms(drawn, particles.plate) for drawn in draws], dim=1)
        reconstruction, latents, entropy = terms.mean(1)
        return CodeLength(reconstruction, latents, entropy, num_elements)

    return particles.joined(particles.for_each_pass(measured))


def _terms(draws: Draws, plate: DataPlate) -> Tensor:
    """-log p(x | z), -log p(z) and the entropy of q, stacked, each ``(K, B)``."""
    drawn = [s for s in draws.guide_sites.values() if not s["is_observed"]]
    log_likelihood = _log_density(draws.observations().values(), plate)
    log_q = _log_density(drawn, plate)
    log_prior = draws.log_weights + log_q - log_likelihood

    try:
        entropy = _sum([_per_datum(s, plate, s["fn"].entropy()) for s in drawn])
    except NotImplementedError:
        entropy = -log_q
    parts = torch.broadcast_tensors(-log_likelihood, -log_prior, entropy)
    return torch.stack(parts).double().cpu()


def _log_density(sites: Iterable[Message], plate: DataPlate) -> Tensor:
    return _sum([_per_datum(s, plate, s["fn"].log_prob(s["value"])) for s in sites])


def _sum(terms: list[Tensor]) -> Tensor:
    return sum(terms, start=torch.zeros(()))  # on any device


def _per_datum(site: Message, plate: DataPlate, term: Tensor) -> Tensor:
    """A term of a site's batch shape as ``(K, B)``, summed over the plates inside the data plate."""
    value = site["value"]
    term = term.expand(value.shape[: value.dim() - len(site["fn"].event_shape)])
    term = scale_and_mask(term, mask=site["mask"])
    others = [d for d in range(1, term.dim()) if d != term.dim() + plate.dim]
    return term.sum(others) if others else term
