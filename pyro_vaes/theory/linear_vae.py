r"""The linear VAE and conditional VAE: which latent units collapse, and all else about the global optimum.

    p(z) = N(0, prior_scale² I),   p(x|z) = N(U z, noise² I),   q(z|x) = N(W x, diag(scale²)),  scale shared by all x
    L = 2 (-ELBO_beta) - D log(2 pi noise²)
      = E‖x - U z‖² / noise² + 2 beta sum_i KL_i

With :math:`\theta_i^2` the eigenvalues of E[x xᵀ], descending, unit i of a learnable scale is active iff
:math:`\theta_i > \sqrt\beta\,\eta_d` (theorem 1a), and with :math:`r_i = (\theta_i^2 - \beta\eta_d^2)_+`

.. math:: sv(U)_i = \sqrt{r_i} / \eta_e, \quad sv(W\,E[xx^T]^{1/2})_i = \eta_e \sqrt{r_i} / \theta_i, \quad
    \sigma_i = \sqrt\beta\,\eta_e \eta_d / \theta_i \text{ if active, else } \eta_e

so KL_i = (½ log(theta_i²/(beta noise²)))_+ and the squared error is min(theta_i², beta noise²): reverse water-filling.
With fixed scales s_i, the smallest for the strongest mode, unit i is active iff :math:`\theta_i > \sqrt\beta c s_i`,
:math:`c = \eta_d / \eta_e` (theorem 1b), and with :math:`m_i = (\theta_i - \sqrt\beta c s_i)_+`

.. math:: sv(U)_i = \sqrt{\sqrt\beta c\, m_i / s_i}, \qquad sv(W\,E[xx^T]^{1/2})_i = \sqrt{s_i m_i / (\sqrt\beta c)}

The conditional VAE codes what regression on a covariate x leaves of the target y:

    p(z) = N(0, prior_scale² I),   p(y|x,z) = N(U1 z + U2 x, noise² I),   q(z|x,y) = N(W1 x + W2 y, diag(scale²))

With E = E[y yᵀ] - E[y xᵀ] E[x xᵀ]⁻¹ E[x yᵀ] (the Schur complement) and :math:`\theta_i` its eigenvalues, in VARIANCE
units, unit i is active iff :math:`\theta_i > \beta \eta_d^2` (theorem 2). Everything else is the linear VAE's optimum
with :math:`\theta_i^2` replaced by :math:`\theta_i`, besides U2 = E[y xᵀ] E[x xᵀ]⁻¹ and W1 = -W2 U2.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024), theorems 1 and 2
    | https://arxiv.org/abs/2306.05023
    | Don't Blame the ELBO! (Lucas, Tucker, Grosse & Norouzi, 2019)
    | https://arxiv.org/abs/1911.02469
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from pyro_vaes.tables import text_table

from .arguments import Number, positive, spectrum, whole

SHOWN = 12  # units in the printed table


class LinearOptimum:
    """What the optima of linear models with one level or more have in common."""

    noise: float
    loss: float
    encoder_singular_values: Tensor

    @property
    def num_active(self) -> int:
        """Number of units whose posterior depends on x; units of z1 where there are two levels."""
        return int((self.encoder_singular_values > 0).sum())

    def elbo(self, num_features: int) -> float:
        """The greatest ELBO_beta in nats per datum, -(L + D log(2 pi noise²)) / 2.

        Arguments:
            num_features: D, the length of x.
        """
        return -0.5 * (self.loss + num_features * math.log(2 * math.pi * self.noise**2))


@dataclass(frozen=True, eq=False, repr=False)
class LinearVAE(LinearOptimum):
    """The global optimum of a linear VAE with d units on data with D modes; prints itself as a table.

    All tensors are float64, in descending order of theta. A collapsed unit has zeros in both matrices, and q = p where
    the encoder's scale is learnable.

    Attributes:
        theta: Square roots of the eigenvalues of E[x xᵀ], padded with zeros to at least d entries.
        noise: Standard deviation of the likelihood.
        prior_scale: Standard deviation of the prior.
        beta: Weight of the KL term.
        learnable: Whether the encoder's scales are learnt.
        decoder_singular_values: Singular values of U, ``(d,)``.
        encoder_singular_values: Singular values of W E[x xᵀ]^(1/2), ``(d,)``: the standard deviations of the posterior
            means.
        encoder_scale: Standard deviations of q, ``(d,)``.
        kl: E_x KL(q(z_i|x) ‖ p(z_i)) in nats, without beta, ``(d,)``; with the scale learnable also the mutual
            information of x and z_i where x is normal.
        distortion: Expected squared error of each mode, sampling of z included, ``(max(D, d),)``.
        loss: L per datum, see above; :meth:`elbo` converts it.
        critical_beta: beta from which on each unit is collapsed, all else equal, ``(d,)``.
        critical_noise: Noise from which on each unit is collapsed, all else equal, ``(d,)``.
    """

    theta: Tensor
    noise: float
    prior_scale: float
    beta: float
    learnable: bool
    decoder_singular_values: Tensor
    encoder_singular_values: Tensor
    encoder_scale: Tensor
    kl: Tensor
    distortion: Tensor
    loss: float
    critical_beta: Tensor
    critical_noise: Tensor

    _theta = "theta"
    _data = "E|x|²"

    @property
    def latent_dim(self) -> int:
        """Number d of units."""
        return len(self.kl)

    def _variance(self) -> Tensor:
        return self.theta.square()

    def __repr__(self) -> str:
        d, scale = self.latent_dim, "learnable" if self.learnable else "fixed"
        head = (
            f"{type(self).__name__}: {self.num_active} of {d} units active (noise {self.noise:g}, "
            f"prior scale {self.prior_scale:g}, beta {self.beta:g}, encoder scale {scale})"
        )

        table = unit_table(
            f"{self._theta}:>10.3f | sv(U):>9.3f | sv(V):>9.3f | scale:>9.3f | KL:>9.3f | "
            "error:>9.3f | beta*:>10.3f | noise*:>9.3f",
            self.theta[:d],
            self.decoder_singular_values,
            self.encoder_singular_values,
            self.encoder_scale,
            self.kl,
            self.distortion[:d],
            self.critical_beta,
            self.critical_noise,
        )

        foot = (
            f"KL {self.kl.sum():.3f} nats, squared error {self.distortion.sum():.3f} of {self._data} = "
            f"{self._variance().sum():.3f}, loss {self.loss:.3f}; a unit is collapsed from beta* or noise* on"
        )
        return "\n".join([head, *table, foot])


def linear_vae(
    theta: Tensor | Sequence[float],
    latent_dim: int,
    *,
    noise: Number = 1.0,
    prior_scale: Number = 1.0,
    beta: Number = 1.0,
    encoder_scale: Number | Sequence[float] | None = None,
) -> LinearVAE:
    """The global optimum of the linear VAE with d units, theorems 1a and 1b.

    Arguments:
        theta: Square roots of the eigenvalues of E[x xᵀ] (standard deviations, NOT variances), descending, shape
            ``(D,)``, from :func:`~pyro_vaes.theory.second_moment_spectrum`: not centred for maps without biases,
            centred for maps with them. All D of them: those beyond d are part of the loss.
        latent_dim: d; may exceed D.
        noise: Standard deviation of the likelihood (NOT its variance).
        prior_scale: Standard deviation of the prior.
        beta: Weight of the KL term.
        encoder_scale: None for learnable standard deviations of q; one number or d of them if they are fixed. The
            result pairs the smallest with the strongest mode, as the optimum does.

    Raises:
        ValueError: theta is no descending, non-negative vector, a number is not positive, or the encoder's scales are
            not d.

    Example:
        >>> vae = linear_vae([3.0, 2.0, 0.5], 3, noise=1.0)
        >>> vae.num_active, vae.encoder_scale
        (2, tensor([0.3333, 0.5000, 1.0000], dtype=torch.float64))
        >>> print(vae)
        LinearVAE: 2 of 3 units active (noise 1, prior scale 1, beta 1, encoder scale learnable)
        unit     theta    sv(U)    sv(V)    scale       KL    error     beta*   noise*
           1     3.000    2.828    0.943    0.333    1.099    1.000     9.000    3.000
           2     2.000    1.732    0.866    0.500    0.693    1.000     4.000    2.000
           3     0.500    0.000    0.000    1.000    0.000    0.250     0.250    0.500
        KL 1.792 nats, squared error 2.250 of E|x|² = 13.250, loss 5.834; a unit is collapsed from beta* or noise* on
    """
    d = whole("latent_dim", latent_dim)
    modes = spectrum(theta, d)
    noise = positive("noise", noise, "the standard deviation of the likelihood")
    prior_scale = positive("prior_scale", prior_scale, "the standard deviation of the prior")
    beta = positive("beta", beta, "the weight of the KL term")

    theta = modes[:d]
    if encoder_scale is None:
        units = _learnable(theta, noise, prior_scale, beta)
    else:
        units = _fixed(theta, encoder_scale, noise, prior_scale, beta)

    decoder, encoder, scale, *_ = units.values()
    kl = 0.5 * ((encoder.square() + scale.square()) / prior_scale**2 - 1) - (scale / prior_scale).log()
    if encoder_scale is None:  # without rounding
        kl = torch.where(encoder > 0, kl, 0.0)

    distortion = modes.square()
    distortion[:d] = (theta - decoder * encoder).square() + (decoder * scale).square()
    return LinearVAE(
        theta=modes,
        noise=noise,
        prior_scale=prior_scale,
        beta=beta,
        learnable=encoder_scale is None,
        kl=kl,
        distortion=distortion,
        loss=(distortion.sum() / noise**2 + 2 * beta * kl.sum()).item(),
        **units,
    )


Units = dict[str, Tensor]
"""Of each unit: singular values of both matrices, scale of q, thresholds of collapse."""


def _learnable(theta: Tensor, noise: float, prior_scale: float, beta: float) -> Units:
    """Theorem 1a."""
    excess = (theta.square() - beta * noise**2).clamp(min=0).sqrt()  # the root of r
    active = excess > 0
    return Units(
        decoder_singular_values=excess / prior_scale,
        encoder_singular_values=torch.where(active, prior_scale * excess / theta, 0.0),
        encoder_scale=torch.where(active, math.sqrt(beta) * prior_scale * noise / theta, prior_scale),
        critical_beta=theta.square() / noise**2,
        critical_noise=theta / math.sqrt(beta),
    )


def _fixed(
    theta: Tensor,
    encoder_scale: Number | Sequence[float],
    noise: float,
    prior_scale: float,
    beta: float,
) -> Units:
    """Theorem 1b."""
    d = len(theta)
    scales = torch.as_tensor(encoder_scale, dtype=torch.float64).detach().to(theta)
    proper = (scales > 0) & scales.isfinite()
    if scales.dim() > 1 or scales.numel() not in (1, d) or not proper.all():
        raise ValueError(
            f"encoder_scale is a positive standard deviation, or {d} of them, one for each latent unit, but got "
            f"{encoder_scale!r}; None if the encoder learns it."
        )

    scale = scales.expand(d).sort().values
    slope = math.sqrt(beta) * noise / prior_scale  # the threshold is slope s_i
    excess = (theta - slope * scale).clamp(min=0)  # m
    critical_noise = theta * prior_scale / (math.sqrt(beta) * scale)

    return Units(
        decoder_singular_values=(slope * excess / scale).sqrt(),
        encoder_singular_values=(scale * excess / slope).sqrt(),
        encoder_scale=scale,
        critical_beta=beta * (critical_noise / noise).square(),
        critical_noise=critical_noise,
    )


def unit_table(columns: str, *values: Tensor) -> list[str]:
    """Lines with the numbers of the first latent units.

    Arguments:
        columns: The columns besides the unit's number, as for :func:`~pyro_vaes.tables.text_table`.
        values: Numbers of the units for each column, ``(d,)``; where there are fewer, places stay empty.
    """
    number = max(map(len, values))
    rows = zip_longest(range(1, number + 1), *map(Tensor.tolist, values))
    lines = text_table(f"unit:>4 | {columns}", list(rows)[:SHOWN])
    if number > SHOWN:
        lines.append(f"{'...':>4} {number - SHOWN} more")
    return lines


@dataclass(frozen=True, eq=False, repr=False)
class LinearCVAE(LinearVAE):
    """The global optimum of a linear conditional VAE, with the attributes of :class:`LinearVAE`.

    Here ``theta`` holds variances, ``decoder_singular_values`` are those of U1, and ``encoder_singular_values`` those
    of W2 E^(1/2), the standard deviations of the posterior means.
    """

    _theta = "variance"
    _data = "tr E"

    def _variance(self) -> Tensor:
        return self.theta


def linear_cvae(
    theta: Tensor | Sequence[float],
    latent_dim: int,
    *,
    noise: Number = 1.0,
    prior_scale: Number = 1.0,
    beta: Number = 1.0,
) -> LinearCVAE:
    """The global optimum of the linear conditional VAE with d units and a learnable encoder scale, theorem 2.

    Arguments:
        theta: Eigenvalues of the Schur complement (variances, NOT standard deviations), descending, shape ``(T,)``,
            from :func:`~pyro_vaes.theory.residual_spectrum`: not centred for maps without biases, centred for maps with
            them.
        latent_dim: d; may exceed T.
        noise: Standard deviation of the likelihood (NOT its variance, although theta holds variances).
        prior_scale: Standard deviation of the prior, which does not see the covariate.
        beta: Weight of the KL term.

    Raises:
        ValueError: theta is no descending, non-negative vector, or a number is not positive.

    Example:
        >>> cvae = linear_cvae([4.0, 0.9], 2, noise=1.0)
        >>> cvae.num_active, cvae.critical_beta
        (1, tensor([4.0000, 0.9000], dtype=torch.float64))
    """
    source = "use residual_spectrum(target, covariate), or moment_spectrum(schur_complement(...))"
    variances = spectrum(theta, whole("latent_dim", latent_dim), source)
    theta = variances.sqrt()
    vae = linear_vae(theta, latent_dim, noise=noise, prior_scale=prior_scale, beta=beta)
    return LinearCVAE(**vars(replace(vae, theta=variances)))
