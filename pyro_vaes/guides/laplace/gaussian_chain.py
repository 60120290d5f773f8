r"""Score and curvature by hand for z -> Linear -> ReLU -> ... -> Linear -> N(g(z), noise shared by all data).

    A = tangents at the last hidden layer as rows (B, d, H),    W = A V₃ᵀ,    R = noise precision
    P = W R Wᵀ + prior precision = A G Aᵀ + ...,                G = V₃ᵀ R V₃
    score = W R (x - g) - prior precision (z - prior mean) = A (V₃ᵀ R (x - a₃) - G h) - ...,    g = V₃ h + a₃

The second forms (the Gram trick) never hold a Jacobian of the data's size; they are used where H <= D. Around each
datum the network is linear, so the score at z + step of that linear network is the residual of Newton's equation.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from .gram import Congruence, Gram, GramResidual
from .linear_region import LinearRegion, ReluChain, select
from .linearise import Linearised


@dataclass(frozen=True)
class GaussianChain(ReluChain):
    """The chain with Gaussians at both of its ends.

    Arguments:
        gram, data: V₃ᵀ R V₃ and V₃ᵀ R (x - a₃), shapes ``(H, H)`` and ``(B, H)``, for the Gram trick; else None.
    """

    gram: Tensor | None = None
    data: Tensor | None = None

    def prepare(self, use_gram: bool | None = None) -> Self:
        """Compute what all steps share; None decides by the sizes."""
        weight, bias = self.last.weight, self.last.bias
        if use_gram is None:
            use_gram = weight.shape[1] <= weight.shape[0]
        if not use_gram:
            return self

        centred = self.x if bias is None else self.x - bias
        return replace(self, gram=Gram.apply(weight, self.weight), data=(centred * self.weight) @ weight)

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :class:`~pyro_vaes.guides.laplace.linearise.Lineariser`."""
        with torch.no_grad():  # gradients of the score pass by the residual
            hidden, region = self.around(z)
            gradient = self._score(z, hidden, region) if score else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            precision = self._curvature(z, region) + torch.diag_embed(self.prior_precision)

        def residual(step: Tensor) -> Tensor:
            point = z + step
            if self.gram is None or self.data is None:
                return self._score(point, region(point), region)

            assert gradient is not None
            prior = self.prior_precision * (point - self.prior_loc)
            with torch.no_grad():
                value = gradient - (precision @ step.unsqueeze(-1)).squeeze(-1) + prior
            of_data = GramResidual.apply(value, point, self.data, self.gram, *region.parts)
            return of_data - prior

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)

    def _score(self, z: Tensor, hidden: Tensor, region: LinearRegion) -> Tensor:
        if self.gram is None or self.data is None:
            of_data = ((self.x - self.last(hidden)) * self.weight) @ self.last.weight
        else:
            of_data = self.data - linear(hidden, self.gram)
        return region.pull(of_data) - self.prior_precision * (z - self.prior_loc)

    def _curvature(self, z: Tensor, region: LinearRegion) -> Tensor:
        """W R Wᵀ, ``(1, d, d)`` if it is the same for all data."""
        region, used = region.without_idle_units()
        matrix = self.last.weight if self.gram is None else select(self.gram, 0, used)
        matrix = select(matrix, 1, used)

        blocks = []
        for _, tangents in region.push_all(z, width=matrix.shape[1]):
            if self.gram is None:
                jacobian = linear(tangents, matrix)
                blocks.append((jacobian * self.weight) @ jacobian.mT)
            else:
                blocks.append(Congruence.apply(tangents, matrix))
        return torch.cat(blocks)
