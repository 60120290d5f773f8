"""Mixtures of amortised posteriors as a guide for any Pyro program with continuous latents in one data plate.

    Q_0 = q_0(z | x),    Q_m(z | x) = (1 - eps_m(x)) Q_{m-1}(z | x) + eps_m(x) q_m(z | x),    m = 1..M

References:
    | Recursive Inference for Variational Autoencoders (Kim & Pavlovic, 2020)
    | https://arxiv.org/abs/2011.08544
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vaes.distributions import RecursiveMixture
from pyro_vaes.nn import as_posterior
from pyro_vaes.programs import Program

from .amortized import AmortizedGuide, output_of
from .given import Given, Rows, as_given

MAX_LOGIT = 10.0  # a weight beyond sigmoid(10) would no longer learn, nor would its component


class AmortizedMixture(AmortizedGuide):
    """A mixture of M + 1 posteriors over all latent sites together, with weights that depend on the datum.

    Train it with :class:`~pyro_vaes.infer.RecursiveMixture_ELBO`, each component where those before it fall short; with
    :class:`~pyro_vaes.infer.StratifiedMixture_ELBO`, all at once on one bound; or with a bound that has score-function
    gradients. Components that start identical stay identical on the one bound: initialise them differently.

    Arguments:
        model: Any Pyro program whose latents are continuous and lie in one data plate.
        components: M + 1 encoders (a call with the model's arguments returns a distribution over vectors of the
            latents' total unconstrained dimension, or a pair ``(loc, scale)``) or guides with such a ``posterior``.
        weights: M networks; a call with the model's arguments returns a number per datum, shape ``(B,)`` or ``(B, 1)``.
            All weights are equal where these numbers are 0, as :class:`~pyro_vaes.nn.WeightHead` starts.
        trunk: A network that all of them share, run once per batch: components and weights are then called with its
            output in place of the arguments, so that inference costs about as much as with one encoder. It belongs to
            component 0; to all others its output is a constant, so that no block moves another's parameters. None
            gives every component a network of its own, as the paper does.

    Raises:
        ValueError: The numbers of components and weights do not fit together, or they are no networks; or a component
            is a guide, which needs the model's arguments, behind a trunk.

    Example:
        >>> import torch
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead, WeightHead
        >>> encoders = [Chain(MLP(16, [8], 8), NormalHead(8, 2)) for _ in range(3)]
        >>> vae = VAE(encoders[0], MLP(2, [8], 16), BernoulliLikelihood(), latent_dim=2)
        >>> guide = AmortizedMixture(vae.model, encoders, [Chain(MLP(16, [8], 8), WeightHead(8)) for _ in range(2)])
        >>> guide.posterior(torch.zeros(5, 16)).log_alpha.exp()[0]
        tensor([0.3333, 0.3333, 0.3333], grad_fn=<SelectBackward0>)
    """

    encoder: "MixtureEncoder"

    def __init__(
        self,
        model: Program,
        components: Sequence[nn.Module],
        weights: Sequence[nn.Module],
        *,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__(model, MixtureEncoder(components, weights, trunk))

    def _encoded(self, given: Given) -> object:
        return given.call(self.encoder)  # components that are guides see all data, and which rows


class MixtureEncoder(nn.Module):
    """Several encoders and their weights as one encoder that returns a mixture."""

    def __init__(self, components: Sequence[nn.Module], weights: Sequence[nn.Module], trunk: nn.Module | None) -> None:
        super().__init__()
        components, weights = list(components), list(weights)
        for label, parts in (("components", components), ("weights", weights)):
            wrong = [type(p).__name__ for p in parts if not isinstance(p, nn.Module)]
            if wrong:
                raise ValueError(f"The {label} of a mixture must be networks, but got {wrong}.")

        if not components or len(weights) != len(components) - 1:
            raise ValueError(
                f"A mixture of {len(components)} components needs {max(len(components) - 1, 0)} weight networks, one "
                f"for each component but the first, but got {len(weights)}."
            )

        guides = [m for m, part in enumerate(components) if isinstance(part, AmortizedGuide)]
        if trunk is not None and guides:
            raise ValueError(
                f"Behind a trunk the components are called with its output, but components {guides} are guides, which "
                "run the model on its own arguments; leave trunk out, or pass their networks instead?"
            )

        self.components, self.weights, self.trunk = nn.ModuleList(components), nn.ModuleList(weights), trunk

    def forward(self, *args: object, rows: Rows = None, **kwargs: object) -> RecursiveMixture:
        given = others = as_given(args, kwargs, rows)
        if self.trunk is not None:
            features = output_of(self.trunk, given)
            assert isinstance(features, Tensor)
            given, others = Given((features,), {}), Given((features.detach(),), {})

        components, logits = [], []
        for m, part in enumerate(self.components):
            network = part if isinstance(part, AmortizedGuide) else getattr(part, "posterior", part)
            q = output_of(network, others if m else given)
            components.append(as_posterior(q, f"component {m}"))

        for m, part in enumerate(self.weights, start=1):
            logits.append(self._logit(m, output_of(part, others)))
        return RecursiveMixture(components, logits)

    def _logit(self, m: int, raw: object) -> Tensor:
        """logit eps_m, within MAX_LOGIT; eps_m is 1 / (m + 1) at raw = 0."""
        assert isinstance(raw, Tensor)
        raw = raw.squeeze(-1) if raw.dim() > 1 else raw

        # a hard clamp would have no gradient back
        at_zero = math.atanh(-math.log(m) / MAX_LOGIT)
        return MAX_LOGIT * torch.tanh(raw / MAX_LOGIT + at_zero)
