r"""Probabilistic PCA: the linear-Gaussian VAE, whose optimum, evidence and posterior are known.

    z ~ N(0, I_k),    x | z ~ N(W z + mean, noise_var I_D)

References:
    | Probabilistic Principal Component Analysis (Tipping and Bishop, 1999)
    | https://doi.org/10.1111/1467-9868.00196
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal
from torch import Tensor

from .arguments import data_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class ProbabilisticPCA:
    """A linear-Gaussian model of x, with its exact evidence and posterior.

    :func:`probabilistic_pca` returns the one of maximum likelihood; the weights of any linear decoder with
    one noise variance make another: ``ProbabilisticPCA(decoder.bias, decoder.weight, scale**2)``.

    Arguments:
        mean: Mean of x, shape ``(D,)``.
        loadings: W, shape ``(D, k)``.
        noise_var: Variance of the noise, a positive number or a tensor with shape ``()``.
        spectrum: Eigenvalues of the data's covariance, descending, shape ``(D,)``; where the model was fitted
            to data.

    Raises:
        ValueError: The shapes do not fit together, or the noise variance is not positive.

    Example:
        >>> model = ProbabilisticPCA(torch.zeros(3), torch.ones(3, 1), 0.5)
        >>> model.log_prob(torch.zeros(2, 3)).shape, model.posterior(torch.zeros(2, 3)).event_shape
        (torch.Size([2]), torch.Size([1]))
        >>> model
        ProbabilisticPCA(D=3, k=1, noise variance 0.5)
    """

    mean: Tensor
    loadings: Tensor
    noise_var: float | Tensor
    spectrum: Tensor | None = None

    def __post_init__(self) -> None:
        if self.loadings.dim() != 2 or self.mean.shape != self.loadings.shape[:1]:
            raise ValueError(
                f"loadings have shape (D, k) and mean has shape (D,), but got {tuple(self.loadings.shape)} "
                f"and {tuple(self.mean.shape)}; transpose the loadings?"
            )
        noise_var = torch.as_tensor(self.noise_var, dtype=self.mean.dtype)
        if noise_var.dim() or not noise_var > 0:
            raise ValueError(
                f"noise_var is one positive variance for all features, but got {self.noise_var}; pass the "
                "square of the likelihood's scale, with shape ()?"
            )

    @property
    def log_likelihood(self) -> float:
        r"""The mean of log p(x) per datum of the data that were fitted, in nats.

        .. math:: -\tfrac{1}{2} \left[ D \log 2\pi + \sum_{i \le k} \log \lambda_i
            + (D - k) \log \sigma^2 + D \right]

        Raises:
            ValueError: The model was not fitted to data; use :meth:`log_prob`.
        """
        if self.spectrum is None:
            raise ValueError(
                "This ProbabilisticPCA was built from weights, so it has no training data; use log_prob(x).mean()."
            )
        features, k = self.loadings.shape
        log_det = self.spectrum[:k].log().sum() + (features - k) * math.log(self.noise_var)
        return -0.5 * (features * math.log(2 * math.pi) + log_det.item() + features)

    def log_prob(self, x: Tensor) -> Tensor:
        """The evidence log p(x) = log N(x; mean, W Wᵀ + noise_var I) in nats.

        Arguments:
            x: Data, shape ``(..., D)``.

        Returns:
            Tensor with shape ``(...)``.
        """
        noise = self.noise_var * torch.ones_like(self.mean)
        return LowRankMultivariateNormal(self.mean, self.loadings, noise).log_prob(self._checked(x))

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """The exact p(z | x) = N(M⁻¹ Wᵀ (x - mean), noise_var M⁻¹) with M = Wᵀ W + noise_var I.

        Arguments:
            x: Data, shape ``(..., D)``.

        Returns:
            A distribution with batch shape ``(...)`` and event shape ``(k,)``.
        """
        centred = self._checked(x) - self.mean
        gram = self.loadings.mT @ self.loadings  # (k, k)
        precision = torch.eye(len(gram)).to(gram) + gram / self.noise_var
        loc = torch.cholesky_solve(
            (centred @ self.loadings / self.noise_var).unsqueeze(-1), torch.linalg.cholesky(precision)
        )
        return MultivariateNormal(loc.squeeze(-1), precision_matrix=precision)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != self.mean.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but the model describes {len(self.mean)} features in the "
                "last dimension; flatten images first?"
            )
        return x.to(self.mean)

    def __repr__(self) -> str:
        features, k = self.loadings.shape
        fit = "" if self.spectrum is None else f", log-likelihood {self.log_likelihood:.3f} nats per datum"
        return f"ProbabilisticPCA(D={features}, k={k}, noise variance {float(self.noise_var):.5g}{fit})"

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the eigenvalues of the covariance with the noise floor; those left of the line are explained
        by z.

        Arguments:
            ax: Axes to draw on; new ones by default.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()

        k, noise_var = self.loadings.shape[1], float(self.noise_var)
        spectrum = self.spectrum
        if spectrum is None:  # that of the model itself
            spectrum = torch.full_like(self.mean, noise_var)
            values = torch.linalg.svdvals(self.loadings).square()
            spectrum[: len(values)] += values

        ax.plot(range(1, len(spectrum) + 1), spectrum.detach().cpu().numpy(), ".-", label="eigenvalues")
        ax.axhline(noise_var, color="C1", linestyle="--", label=f"noise variance {noise_var:.4g}")
        ax.axvline(k + 0.5, color="C7", linewidth=0.8, label=f"k = {k}")
        ax.set(xlabel="component", ylabel="variance", yscale="log")
        ax.legend()
        return ax


def probabilistic_pca(x: Tensor, latent_dim: int) -> ProbabilisticPCA:
    r"""Fit probabilistic PCA by maximum likelihood, in closed form.

    .. math:: \sigma^2 = \frac{1}{D - k} \sum_{i > k} \lambda_i, \qquad W = U_k (\Lambda_k - \sigma^2 I)^{1/2}

    with eigenvalues :math:`\lambda` (descending) and eigenvectors U of the covariance with divisor N. W is
    unique up to a rotation of z. Computed in float64.

    Arguments:
        x: Data, shape ``(N, D)``, N at least 2; further dimensions are an error, flatten images first.
        latent_dim: Dimension k of z, 1 to D - 1.

    Returns:
        The fitted model, float64, with :attr:`ProbabilisticPCA.log_likelihood`.

    Raises:
        ValueError: x is not a matrix, holds values that are not finite, has fewer than two rows, or has no
            variance left for the noise; or ``latent_dim`` is out of range.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> probabilistic_pca(torch.as_tensor(load_digits().data) / 16, 10)
        ProbabilisticPCA(D=64, k=10, noise variance 0.022751, log-likelihood 17.452 nats per datum)
    """
    x = data_matrix("x", x.double())
    if len(x) < 2:
        raise ValueError(f"x must have shape (N, D) with N >= 2, but has shape {tuple(x.shape)}.")
    if not isinstance(latent_dim, int) or not 1 <= latent_dim < x.shape[1]:
        raise ValueError(
            f"latent_dim must be a whole number from 1 to D - 1 = {x.shape[1] - 1}, but got {latent_dim!r}; "
            "at least one direction is left to the noise."
        )

    mean = x.mean(0)
    centred = x - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred / len(x))  # ascending
    spectrum, vectors = values.flip(0).clamp(min=0), vectors.flip(1)

    noise_var = spectrum[latent_dim:].mean().item()
    if noise_var <= torch.finfo(x.dtype).eps * spectrum[0].item():
        raise ValueError(
            f"The data lie in {latent_dim} dimensions or fewer (rank of the covariance), so the likelihood "
            "is unbounded as the noise vanishes; choose a smaller latent_dim, or use more data than "
            "dimensions."
        )

    loadings = vectors[:, :latent_dim] * (spectrum[:latent_dim] - noise_var).sqrt()
    return ProbabilisticPCA(mean, loadings, noise_var, spectrum)
