r"""The linear conditional VAE: the latent codes what regression on the covariate leaves of the target.

    p(z) = N(0, prior_scale² I),   p(y|x,z) = N(U1 z + U2 x, noise² I),   q(z|x,y) = N(W1 x + W2 y, diag(scale²))

With E = E[y yᵀ] - E[y xᵀ] E[x xᵀ]⁻¹ E[x yᵀ] (the Schur complement) and :math:`\theta_i` its eigenvalues, in VARIANCE
units, unit i is active iff :math:`\theta_i > \beta \eta_d^2` (theorem 2). Everything else is the linear VAE's optimum
with :math:`\theta_i^2` replaced by :math:`\theta_i`, besides U2 = E[y xᵀ] E[x xᵀ]⁻¹ and W1 = -W2 U2.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024), theorem 2
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from .arguments import Number, spectrum, whole
from .linear_vae import LinearVAE, linear_vae


@dataclass(frozen=True, eq=False, repr=False)
class LinearCVAE(LinearVAE):
    """The global optimum of a linear conditional VAE, with the attributes of :class:`LinearVAE`.

    Here ``theta`` holds variances, ``decoder_singular_values`` are those of U1, and ``encoder_singular_values`` those
    of W2 E^(1/2), the standard deviations of the posterior means.
    """

    _theta: ClassVar[str] = "variance"
    _data: ClassVar[str] = "tr E"

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
    vae = linear_vae(variances.sqrt(), latent_dim, noise=noise, prior_scale=prior_scale, beta=beta)
    return LinearCVAE(**vars(replace(vae, theta=variances)))
