r"""A mixture of normals as a prior, as a module whose forward returns the distribution.

    p(z) = sum_k pi_k N(z; mu_k, Sigma_k),    Sigma_k = diag(sig_k²) or L_k L_kᵀ

References:
    | Disentangling to Cluster: Gaussian Mixture Variational Ladder Autoencoders (Willetts, Roberts & Holmes, 2019)
    | https://arxiv.org/abs/1909.11501
    | Multi-Facet Clustering Variational Autoencoders (Falck et al., 2021), for where the components start
    | https://arxiv.org/abs/2106.05241
"""

from typing import Literal, get_args

import numpy as np
import torch
from pyro.distributions import Categorical, Independent, MultivariateNormal, Normal, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vaes.distributions import Mixture

from .heads import MIN_SCALE, lower_triangular

Fit = Literal["gmm", "kmeans"]


class MixturePrior(nn.Module):
    """A mixture of K normals over ``dim`` dimensions, whose parameters are learned.

    Scales are ``softplus(raw) + min_scale``. The components start with standard deviation ``scale`` at means drawn from
    N(0, I); :meth:`start_from` puts them where the codes of data lie.

    Arguments:
        dim: Number of dimensions.
        num_components: K.
        full_covariance: Whether the components have full covariances, rather than diagonal ones.
        learn_weights: Whether the weights pi are learned; else they are uniform.
        scale: Standard deviation at the start.
        min_scale: Floor of the scales.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> prior = MixturePrior(2, 4)
        >>> prior().log_prob(torch.zeros(5, 2)).shape, prior().responsibilities(torch.zeros(5, 2)).shape
        (torch.Size([5]), torch.Size([5, 4]))
    """

    logits: Tensor

    def __init__(
        self,
        dim: int,
        num_components: int,
        *,
        full_covariance: bool = False,
        learn_weights: bool = True,
        scale: float = 1.0,
        min_scale: float = MIN_SCALE,
    ) -> None:
        super().__init__()
        if num_components < 1 or dim < 1 or not scale > min_scale > 0:
            raise ValueError(
                f"A mixture needs num_components >= 1, dim >= 1 and scale > min_scale > 0, but got {num_components}, "
                f"{dim}, {scale} and {min_scale}."
            )
        self.num_components, self.dim, self.min_scale = num_components, dim, min_scale

        logits = torch.zeros(num_components)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

        self.loc = nn.Parameter(torch.randn(num_components, dim))
        self.raw_scale = nn.Parameter(torch.empty(num_components, dim))
        below = dim * (dim - 1) // 2
        self.lower = nn.Parameter(torch.zeros(num_components, below)) if full_covariance and below else None
        self.place(self.loc, scale)

    @torch.no_grad()
    def place(self, loc: Tensor, scale: float | Tensor, *, probs: Tensor | None = None) -> None:
        """Put the components at these means with diagonal covariances.

        Arguments:
            loc: Means with shape ``(K, dim)``.
            scale: Standard deviations, broadcasting against ``loc``; what is below the floor is raised to just above.
            probs: Weights with shape ``(K,)``, not all zero; None leaves them as they are.

        Raises:
            ValueError: Shapes do not fit, or there are weights but they are not learned.
        """
        if loc.shape != self.loc.shape:
            raise ValueError(
                f"The components need means with shape {tuple(self.loc.shape)}, but got {tuple(loc.shape)}."
            )
        if probs is not None and not isinstance(self.logits, nn.Parameter):
            raise ValueError(
                "The weights of this mixture are fixed and uniform: leave probs out, or learn_weights=True."
            )

        above = (torch.as_tensor(scale, dtype=self.loc.dtype) - self.min_scale).clamp(min=0.1 * self.min_scale)
        self.loc.copy_(loc)
        self.raw_scale.copy_(above + torch.log(-torch.expm1(-above)))  # the inverse of softplus
        if self.lower is not None:
            self.lower.zero_()
        if probs is not None:
            weights = probs / probs.sum()
            self.logits.copy_(weights.clamp(min=1e-3 / self.num_components).log())  # an empty component may come back

    def start_from(self, codes: Tensor, *, scale: float | None = 0.1, method: Fit = "gmm", seed: int = 0) -> None:
        """Put the components where codes of data lie, after a phase of training without clusters.

        Arguments:
            codes: Posterior means with shape ``(N, dim)``.
            scale: Standard deviation of all components, the authors' of the multi-facet model by default; None for
                those that the fit finds.
            method: A mixture of diagonal normals fitted by EM, or K-means.
            seed: Random seed for the start of the fit.

        Raises:
            ValueError: There are fewer codes than components, or no such method.
        """
        if codes.dim() != 2 or codes.shape[1] != self.dim or len(codes) < self.num_components:
            raise ValueError(
                f"{self.num_components} components of {self.dim} dimensions need at least as many codes with shape "
                f"(N, {self.dim}), but got {tuple(codes.shape)}."
            )
        if method not in get_args(Fit):
            raise ValueError(f"method must be one of {get_args(Fit)}, but got {method!r}.")

        from sklearn.cluster import KMeans
        from sklearn.mixture import GaussianMixture

        values = codes.detach().double().cpu().numpy()
        if method == "gmm":
            fit = GaussianMixture(self.num_components, covariance_type="diag", random_state=seed, reg_covar=1e-4)
            found = fit.fit_predict(values)
            means, variances = fit.means_, fit.covariances_
        else:
            kmeans = KMeans(self.num_components, n_init=5, random_state=seed).fit(values)
            found, means, variances = kmeans.labels_, kmeans.cluster_centers_, None

        members = np.eye(self.num_components)[found]  # (N, K), one 1 in each row
        counts = members.sum(0)
        if variances is None:
            variances = members.T @ np.square(values - means[found]) / counts.clip(1)[:, None]

        loc, within, shares = (torch.as_tensor(a).to(self.loc) for a in (means, np.sqrt(variances), counts))
        learned = isinstance(self.logits, nn.Parameter)
        self.place(loc, within if scale is None else scale, probs=shares if learned else None)

    @property
    def weights(self) -> Categorical:
        """Cat(pi)."""
        return Categorical(logits=self.logits)

    @property
    def components(self) -> TorchDistribution:
        """N(mu_k, Sigma_k) for all k, with batch shape ``(K,)`` and event shape ``(dim,)``."""
        return self.component(torch.arange(self.num_components, device=self.loc.device))

    def component(self, k: Tensor) -> TorchDistribution:
        """N(mu_k, Sigma_k) for clusters k with any shape, which is the batch shape."""
        diagonal = softplus(self.raw_scale) + self.min_scale
        if self.lower is None:
            return Normal(self.loc[k], diagonal[k]).to_event(1)
        return MultivariateNormal(self.loc[k], scale_tril=lower_triangular(diagonal, self.lower)[k])

    def forward(self) -> Mixture:
        return Mixture(self.weights, self.components)

    def expected_log_joint(self, q: TorchDistribution) -> Tensor:
        """log pi_k + E_q log N(z; mu_k, Sigma_k) for a diagonal normal q(z) = N(m, diag s²), with shape ``(..., K)``.

            E_q log N(z; mu, L Lᵀ) = log N(m; mu, L Lᵀ) - |L⁻¹ diag s|² / 2

        Its softmax over k is the q(y) that maximises the bound where q(z) does not depend on y, and its logsumexp the
        value of the terms with y at the maximum.

        Raises:
            ValueError: q is no diagonal normal.
        """
        if not (isinstance(q, Independent) and isinstance(q.base_dist, Normal)):
            raise ValueError(
                f"The expectation has a closed form for diagonal normals, but got {type(q).__name__}. Give classifiers "
                "for q(y | x), or a head such as NormalHead to the rung?"
            )

        components = self.components
        at_mean = Mixture(self.weights, components, validate_args=False).log_joint(q.mean)
        variance = q.variance.unsqueeze(-2)  # (..., 1, dim)
        if isinstance(components, MultivariateNormal):
            eye = torch.eye(self.dim).to(self.loc)
            inverse = torch.linalg.solve_triangular(components.scale_tril, eye, upper=False)
            precision = inverse.square().sum(-2)  # (K, dim), the diagonal of (L Lᵀ)⁻¹
        else:
            precision = components.variance.reciprocal()
        return at_mean - 0.5 * (precision * variance).sum(-1)
