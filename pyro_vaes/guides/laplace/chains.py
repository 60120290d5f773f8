r"""Score and curvature by hand for z -> Linear -> ReLU -> ... -> Linear with Gaussian noise, or with bits.

With noise that all data share, x ~ N(g(z), R⁻¹):

    A = tangents at the last hidden layer as rows (B, d, H),    W = A V₃ᵀ,    R = noise precision
    P = W R Wᵀ + prior precision = A G Aᵀ + ...,                G = V₃ᵀ R V₃
    score = W R (x - g) - prior precision (z - prior mean) = A (V₃ᵀ R (x - a₃) - G h) - ...,    g = V₃ h + a₃

The second forms (the Gram trick) never hold a Jacobian of the data's size; they are used where H <= D. Around each
datum the network is linear, so the score at z + step of that linear network is the residual of Newton's equation.

With bits, x ~ Bernoulli(p):

    p = sigmoid(g),    S = p (1 - p)
    P = W S Wᵀ + prior precision,        score = W (x - p) - ...

S is each datum's own, so the tangents go up to the data's size; a few data at a time, they stay in the cache.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .gram import Congruence, Gram, GramResidual
from .linear_region import LinearRegion, select
from .linearise import Linearised


@dataclass(frozen=True)
class ReluChain:
    """A chain with the distributions at both of its ends.

    Arguments:
        module: The network.
        layers: Its layers, linear and (leaky) ReLU, the last one linear.
        x: Data, shape ``(B, D)``.
        weight: What the curvature of the data is multiplied by: the precision of Gaussian noise, shape ``(D,)``, or the
            scale of a Bernoulli site, a number.
        prior_loc, prior_precision: Mean and diagonal precision of z, shape ``(B, d)``.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    x: Tensor
    weight: Tensor | float
    prior_loc: Tensor
    prior_precision: Tensor

    def prepare(self) -> Self:
        """The chain with what all steps share."""
        return self

    @property
    def last(self) -> nn.Linear:
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def around(self, z: Tensor) -> tuple[Tensor, LinearRegion]:
        """The last hidden layer ``(B, H)`` at z, and the linear network that the chain is there."""
        value = z
        parts = []

        for layer in self.layers[:-1]:
            before, value = value, layer(value)
            if isinstance(layer, nn.Linear):
                parts.append(layer.weight)
                if layer.bias is not None:
                    parts.append(layer.bias)
            elif isinstance(layer, nn.LeakyReLU):
                one = value.new_ones(())
                slopes = torch.where(before > 0, one, layer.negative_slope)
                parts.append(slopes.unsqueeze(-2))
            else:
                parts.append(value.detach().sign().unsqueeze(-2))

        return value, LinearRegion(parts)


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
        gram = Gram.apply(weight, self.weight)
        return replace(self, gram=gram, data=(centred * self.weight) @ weight)

    def __call__(
        self,
        z: Tensor,
        *,
        score: bool = True,
        constant: bool = False,
    ) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :class:`~pyro_vaes.guides.laplace.linearise.Lineariser`."""
        with torch.no_grad():  # gradients of the score pass by the residual
            hidden, region = self.around(z)
            gradient = self._score(z, hidden, region) if score else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            of_data = self._curvature(z, region)
            precision = of_data + torch.diag_embed(self.prior_precision)

        def residual(step: Tensor) -> Tensor:
            point = z + step
            if self.gram is None or self.data is None:
                return self._score(point, region(point), region)

            assert gradient is not None
            prior = self.prior_precision * (point - self.prior_loc)
            with torch.no_grad():
                value = gradient - (precision @ step.unsqueeze(-1)).squeeze(-1) + prior
            inputs = (point, self.data, self.gram, *region.parts)
            return GramResidual.apply(value, *inputs) - prior

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


@dataclass(frozen=True)
class BernoulliChain(ReluChain):
    """The chain with bits at its end and a Gaussian at its start."""

    def __call__(
        self,
        z: Tensor,
        *,
        score: bool = True,
        constant: bool = False,
    ) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :class:`~pyro_vaes.guides.laplace.linearise.Lineariser`."""
        hidden, region = self.around(z)
        probs = self.last(hidden).sigmoid()
        information = self.weight * probs * (1 - probs)

        def pull(bits: Tensor) -> Tensor:
            return region.pull(bits @ self.last.weight)

        gradient = None
        if score:
            of_data = pull(self.weight * (self.x - probs))
            gradient = of_data - self.prior_precision * (z - self.prior_loc)

        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            used_region, used = region.without_idle_units()
            weight = select(self.last.weight, 1, used)
            blocks = []
            for rows, tangents in used_region.push_all(z, width=len(weight)):
                jacobian = linear(tangents, weight)
                weighted = jacobian * information[rows].unsqueeze(-2)
                blocks.append(weighted @ jacobian.mT)
            precision = torch.cat(blocks) + torch.diag_embed(self.prior_precision)

        def residual(step: Tensor) -> Tensor:
            assert gradient is not None
            tangent = region.push(step.unsqueeze(-2)).squeeze(-2)
            moved = linear(tangent, self.last.weight)
            return gradient - pull(information * moved) - self.prior_precision * step

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)
