r"""The linear Markovian hierarchical VAE with two levels: when does the top level collapse?

    p(z2) = N(0, prior_scale² I),   p(z1|z2) = N(U2 z2, noise² I),   p(x|z1) = N(U1 z1, noise² I)
    q(z1|x) = N(W1 x, S1),   q(z2|z1) = N(W2 z1, S2),   diagonal S1, S2 shared by all data
    ELBO_beta = E log p(x|z1) + beta1 E_q[log p(z1|z2) - log q(z1|x)] + beta2 E_q[log p(z2) - log q(z2|z1)]

All matrices share the directions of E[x xᵀ], so the problem splits into modes. With a = the variance of q(z1|x) and
s >= a the second moment of z1 in a mode, and noise = e, the optimum of U1 leaves

    L = (1/e²) [theta² a / s + g(s) - beta1 e² (1 + log(a / e²))],    sv(U1) = theta lambda / s,   lambda² = s - a,

where g(s) / beta1 e² is what a linear VAE of z1 with theta² = s and weight b' = beta2 / beta1 pays: the top level is
:func:`linear_vae` on sqrt(s), active above s = T. What remains is one number s per mode. With c = noise / prior_scale
and t = sqrt(b') c sigma2:

    S1 = sigma1² I fixed, S2 learnable   T = b' e²; s = max(sigma1², theta² sigma1² / (beta2 e²)) if that is above T,
    (theorem 3)                          else max(sigma1², theta sigma1 / sqrt(beta1))
    S1 and S2 = sigma2² I fixed          T = t²; s = max(sigma1², (theta² sigma1² / (beta1 t))^(2/3)) if that is above
    (theorem 5)                          T, else max(sigma1², theta sigma1 / sqrt(beta1))
    both learnable                       s = e²: z2 collapses (beta2 > beta1); any s >= e² (beta2 = beta1); unbounded
                                         (beta2 < beta1)
    S1 learnable, S2 = sigma2² I fixed   s = e⁴ / t² in all modes that have a unit of z2 if t < e, else e²

So in theorem 5 z2 collapses below theta = beta2 c² sigma2² / (sqrt(beta1) sigma1), with sqrt(beta1) in the denominator;
the released code has it in the numerator, which is wrong unless beta1 = 1. With S1 learnable
a = s min(1, beta1 e² / theta²).

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024), theorems 3 to 5
    | https://arxiv.org/abs/2306.05023
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arguments import Number, positive, spectrum, whole
from .linear_vae import LinearOptimum, LinearVAE, linear_vae, unit_table


@dataclass(frozen=True, eq=False, repr=False)
class LinearHierarchicalVAE(LinearOptimum):
    """The global optimum of a linear hierarchical VAE with d1 and d2 units; prints itself as a table.

    All tensors are float64, in descending order of theta.

    Attributes:
        theta: Square roots of the eigenvalues of E[x xᵀ], padded with zeros to at least d1 entries.
        betas: Weights of the terms of z1 and z2.
        encoder_scales: The fixed standard deviations of q at both levels; None where they are learnt.
        decoder_singular_values: Singular values of U1, ``(d1,)``.
        encoder_singular_values: Singular values of W1 E[x xᵀ]^(1/2), ``(d1,)``.
        encoder_scale: Standard deviations of q(z1|x), ``(d1,)``.
        kl: E_q[log q(z1|x) - log p(z1|z2)] of each mode in nats, without beta1, ``(d1,)``. No KL divergence: it can be
            negative.
        distortion: Expected squared error of each mode of x, ``(max(D, d1),)``.
        top: The optimum of the second level, a linear VAE of z1 with weight beta2 / beta1.
        undetermined: Whether the loss is flat in s, so that z2 collapses or not as training has it (both scales
            learnable and beta2 = beta1); the collapsed optimum is the one given.
        top_critical_beta: beta2 from which on each unit of z2 is collapsed, all else equal, ``(d2,)``.
        top_critical_noise: Noise from which on each unit of z2 is collapsed, all else equal, ``(d2,)``; 0 for a unit
            that is collapsed and inf for one that is active at every noise.
    """

    theta: Tensor
    betas: tuple[float, float]
    encoder_scales: tuple[float | None, float | None]
    decoder_singular_values: Tensor
    encoder_singular_values: Tensor
    encoder_scale: Tensor
    kl: Tensor
    distortion: Tensor
    top: LinearVAE
    undetermined: bool
    top_critical_beta: Tensor
    top_critical_noise: Tensor

    @property
    def noise(self) -> float:
        """Standard deviation of the likelihood and of p(z1|z2)."""
        return self.top.noise

    @property
    def prior_scale(self) -> float:
        """Standard deviation of p(z2)."""
        return self.top.prior_scale

    @property
    def latent_dims(self) -> tuple[int, int]:
        """Numbers of units d1, d2."""
        return len(self.kl), self.top.latent_dim

    @property
    def top_num_active(self) -> int:
        """Number of units of z2 whose posterior depends on z1."""
        return self.top.num_active

    @property
    def top_singular_values(self) -> Tensor:
        """Singular values of U2, ``(d2,)``."""
        return self.top.decoder_singular_values

    @property
    def top_encoder_singular_values(self) -> Tensor:
        """Singular values of W2 E_q[z1 z1ᵀ]^(1/2), ``(d2,)``."""
        return self.top.encoder_singular_values

    @property
    def top_encoder_scale(self) -> Tensor:
        """Standard deviations of q(z2|z1), ``(d2,)``."""
        return self.top.encoder_scale

    @property
    def top_kl(self) -> Tensor:
        """E_q KL(q(z2_i|z1) ‖ p(z2_i)) in nats, without beta2, ``(d2,)``."""
        return self.top.kl

    @property
    def loss(self) -> float:
        """L = 2 (-ELBO_beta) - D log(2 pi noise²) per datum."""
        first, second = self.kl.sum().item(), self.top_kl.sum().item()
        return self.distortion.sum().item() / self.noise**2 + 2 * (self.betas[0] * first + self.betas[1] * second)

    def __repr__(self) -> str:
        d1, d2 = self.latent_dims
        scale1, scale2 = ("learnable" if s is None else f"{s:g}" for s in self.encoder_scales)
        head = (
            f"LinearHierarchicalVAE: {self.num_active} of {d1} units of z1 and {self.top_num_active} of {d2} of z2 "
            f"active (noise {self.noise:g}, prior scale {self.prior_scale:g}, betas {self.betas[0]:g} and "
            f"{self.betas[1]:g}, encoder scales {scale1} and {scale2})"
        )

        table = unit_table(
            "theta:>9.3f | sv(U1):>9.3f | sv(V1):>9.3f | scale1:>9.3f | KL1:>9.3f | error:>9.3f | "
            "sv(U2):>9.3f | scale2:>9.3f | KL2:>9.3f | beta2*:>10.3f | noise*:>9.3f",
            self.theta[:d1],
            self.decoder_singular_values,
            self.encoder_singular_values,
            self.encoder_scale,
            self.kl,
            self.distortion[:d1],
            self.top_singular_values,
            self.top_encoder_scale,
            self.top_kl,
            self.top_critical_beta,
            self.top_critical_noise,
        )

        lines = [
            head,
            *table,
            f"KL1 {self.kl.sum():.3f} and KL2 {self.top_kl.sum():.3f} nats, squared error {self.distortion.sum():.3f} "
            f"of E|x|² = {self.theta.square().sum():.3f}, loss {self.loss:.3f}; a unit of z2 is collapsed from beta2* "
            "or noise* on",
        ]
        if self.undetermined:
            lines.append(
                "beta1 = beta2 with both encoder scales learnable: the loss is flat in U2, so whether z2 collapses "
                "depends on the start of training"
            )
        return "\n".join(lines)


def linear_hierarchical_vae(
    theta: Tensor | Sequence[float],
    latent_dims: Sequence[int],
    *,
    noise: Number = 1.0,
    prior_scale: Number = 1.0,
    betas: Sequence[Number] = (1.0, 1.0),
    encoder_scales: Sequence[Number | None],
) -> LinearHierarchicalVAE:
    """The global optimum of the linear Markovian hierarchical VAE, for learnable and fixed encoder scales.

    Arguments:
        theta: Square roots of the eigenvalues of E[x xᵀ] (standard deviations, NOT variances), descending, shape
            ``(D,)``, from :func:`~pyro_vaes.theory.second_moment_spectrum`.
        latent_dims: d1 and d2. Where d2 < d1, the strongest modes have a unit of z2.
        noise: Standard deviation (NOT variance) of the likelihood and of p(z1|z2).
        prior_scale: Standard deviation of p(z2).
        betas: Weights beta1 and beta2 of the terms of z1 and z2.
        encoder_scales: Standard deviations of q(z1|x) and q(z2|z1), one number each, shared by the level's units; None
            where they are learnable. The pair decides the case, so it has no default.

    Raises:
        ValueError: theta is no descending, non-negative vector, an argument does not have two entries, a number is not
            positive, or both scales are learnable and beta2 < beta1: then there is no optimum.

    Example:
        >>> theta = [2.5, 1.8, 1.3, 0.9]
        >>> linear_hierarchical_vae(theta, (4, 4), encoder_scales=(0.7, None)).top_singular_values
        tensor([1.4361, 0.7666, 0.0000, 0.0000], dtype=torch.float64)
        >>> linear_hierarchical_vae(theta, (4, 4), encoder_scales=(1.2, None)).top_num_active
        4
        >>> linear_hierarchical_vae(theta, (4, 4), betas=(1.0, 2.0), encoder_scales=(None, None)).top_num_active
        0
    """
    for name, pair in (("latent_dims", latent_dims), ("betas", betas), ("encoder_scales", encoder_scales)):
        if isinstance(pair, str) or not isinstance(pair, Sequence | Tensor) or len(pair) != 2:
            raise ValueError(f"{name} has one entry for z1 and one for z2, but got {pair!r}.")
    d1, d2 = (whole(f"latent_dims[{i}]", d) for i, d in enumerate(latent_dims))
    modes = spectrum(theta, d1)
    theta = modes[:d1]

    sigmas = (
        None
        if scale is None
        else positive(f"encoder_scales[{i}]", scale, f"the standard deviation of q at z{i + 1}, or None")
        for i, scale in enumerate(encoder_scales)
    )
    given = _Given(
        positive("noise", noise, "the standard deviation of the likelihood and of p(z1|z2)"),
        positive("prior_scale", prior_scale, "the standard deviation of p(z2)"),
        *(positive(f"betas[{i}]", b, f"the weight of the term of z{i + 1}") for i, b in enumerate(betas)),
        *sigmas,
    )
    learnable = given.sigma1 is None and given.sigma2 is None
    if learnable and given.beta2 < given.beta1:
        raise ValueError(
            f"With both encoder scales learnable and beta2 = {given.beta2:g} < beta1 = {given.beta1:g} the loss is "
            "unbounded below: the scale of z1 grows for ever and gains -(beta1 - beta2) log s. Training would diverge "
            "slowly. Choose beta2 >= beta1, or fix one of the encoder's scales."
        )

    # the bottom level, mode by mode
    s = given.second_moment(theta, torch.arange(d1, device=modes.device) < d2)
    a = given.variance(theta, s)
    lam = (s - a).clamp(min=0).sqrt()
    distortion = modes.square()
    distortion[:d1] = theta.square() * a / s

    # the top level, a linear VAE of z1
    e = given.e
    top = linear_vae(
        s.sqrt(),
        d2,
        noise=e,
        prior_scale=given.eta,
        beta=given.beta2 / given.beta1,
        encoder_scale=given.sigma2,
    )
    beyond = 0, max(0, d2 - d1)  # units of z2 without a mode, which are always collapsed
    critical_beta, critical_noise = (pad(values, beyond) for values in given.critical(theta[:d2]))
    return LinearHierarchicalVAE(
        theta=modes,
        betas=(given.beta1, given.beta2),
        encoder_scales=(given.sigma1, given.sigma2),
        decoder_singular_values=theta * lam / s,
        encoder_singular_values=lam,
        encoder_scale=a.sqrt(),
        kl=0.5 * (top.distortion[:d1] / e**2 - 1 - (a / e**2).log()),
        distortion=distortion,
        top=top,
        undetermined=learnable and given.beta1 == given.beta2,
        top_critical_beta=critical_beta,
        top_critical_noise=critical_noise,
    )


@dataclass(frozen=True)
class _Given:
    """What is given besides the spectrum, in the letters of this module's docstring."""

    e: float
    eta: float
    beta1: float
    beta2: float
    sigma1: float | None
    sigma2: float | None

    @property
    def t(self) -> float:
        """t; infinite where S2 is learnable."""
        return math.sqrt(self.beta2 / self.beta1) * self.e / self.eta * (self.sigma2 or math.inf)

    def second_moment(self, theta: Tensor, has_top: Tensor) -> Tensor:
        """s of each mode; `has_top` says which modes have a unit of z2."""
        e, sigma1 = self.e, self.sigma1
        if sigma1 is None:  # independent of the data
            s = torch.full_like(theta, e**2)
            return torch.where(has_top, e**4 / self.t**2, s) if self.t < e else s

        # the loss is convex in log s, so the stationary point is the optimum
        inactive = theta * sigma1 / math.sqrt(self.beta1)
        if self.sigma2 is None:
            active = (theta * sigma1).square() / (self.beta2 * e**2)
            threshold = self.beta2 / self.beta1 * e**2
        else:
            active = ((theta * sigma1).square() / (self.beta1 * self.t)).pow(2 / 3)
            threshold = self.t**2

        # where sigma1² is above the threshold, s = sigma1² either way
        uses_top = has_top & (active > threshold)
        return torch.where(uses_top, active, inactive).clamp(min=sigma1**2)

    def variance(self, theta: Tensor, s: Tensor) -> Tensor:
        """a of each mode."""
        if self.sigma1 is not None:
            return torch.full_like(s, self.sigma1**2)
        return s * (self.beta1 * self.e**2 / theta.square()).clamp(max=1)

    def critical(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """beta2 and noise from which on the units of z2 are collapsed."""
        factor = 1.0 if self.sigma2 is None else (self.sigma2 / self.eta) ** 2
        if self.sigma1 is not None:  # collapsed iff beta2 e² factor >= bound
            least = theta.new_tensor(self.beta1 * self.sigma1**2)
            bound = torch.maximum(math.sqrt(self.beta1) * theta * self.sigma1, least)
            return bound / (self.e**2 * factor), (bound / (self.beta2 * factor)).sqrt()

        # the same for all units; both learnable: beta2 >= beta1 collapses all, whatever the noise
        beta = self.beta1 * (self.eta / (self.sigma2 or self.eta)) ** 2
        noise = math.inf if self.beta2 < beta else 0.0
        return torch.full_like(theta, beta), torch.full_like(theta, noise)
