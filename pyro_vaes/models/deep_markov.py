"""Sequences: a Markov chain of latents, each of which emits an observation.

    p(x, z) = prod_t p(z_t | z_{t-1}) p(x_t | z_t)
    q(z | x) = prod_t q(z_t | z_{t-1}, h_t),    h_t = what is seen from t to the end

Sequences may have different lengths and steps at which nothing was seen. Steps behind
the end of a sequence are masked in both programs; at a gap the latent goes on, and only
the observation is left out.

References:
    | Structured Inference Networks for Nonlinear State Space Models (Krishnan, Shalit & Sontag, 2017)
    | https://arxiv.org/abs/1609.09869
"""

from collections.abc import Iterator

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule, observe, of_length


class DeepMarkovVAE(ProgramModule):
    """A model/guide pair with the sites ``"z_1" .. "z_T"`` (latent) and ``"x_1" .. "x_T"`` in the plate ``"data"``.

    Arguments:
        transition: ``z_{t-1} -> distribution`` of z_t.
        decoder: ``z_t -> parameters`` of the likelihood: the emission.
        likelihood: ``parameters -> distribution`` of x_t, see
            :mod:`pyro_vaes.nn.likelihoods`.
        combiner: ``(z_{t-1}, h_t) -> distribution`` of z_t.
        context: ``(x, seen) -> h`` with shape ``(B, T, width)``, such as
            :class:`Backward`; ``seen`` has shape ``(B, T)`` and is boolean.
        latent_dim: Dimension of every z_t.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead
        >>> parts = dict(
        ...     transition=Chain(MLP(2, [8], 8), NormalHead(8, 2)),
        ...     decoder=MLP(2, [8], 3),
        ...     likelihood=GaussianLikelihood(0.3),
        ...     combiner=Chain(MLP(2 + 6, [8], 8), NormalHead(8, 2)),
        ...     context=Backward(3, 6),
        ... )
        >>> DeepMarkovVAE(**parts, latent_dim=2).model(size=4, steps=5).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        transition: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        combiner: nn.Module,
        context: nn.Module,
        latent_dim: int,
    ) -> None:
        super().__init__()
        self.transition, self.decoder, self.likelihood = transition, decoder, likelihood
        self.combiner, self.context = combiner, context
        self.start = nn.Parameter(torch.zeros(latent_dim))  # z_0
        self.latent_dim = latent_dim

    @pyro_method
    def model(
        self,
        x: Tensor | None = None,
        lengths: Tensor | None = None,
        seen: Tensor | None = None,
        *,
        size: int = 1,
        steps: int = 1,
    ) -> Tensor:
        """The generative program.

        Arguments:
            x: Sequences with shape ``(B, T, ...)``, padded behind their ends; None to
                draw ``size`` of ``steps``.
            lengths: Their lengths, ``(B,)``, whole numbers; None where all have T
                steps.
            seen: At which steps something was seen, ``(B, T)``, boolean; None for all
                up to the end.
            size, steps: Numbers of sequences and steps to draw.
        """
        num_steps = steps if x is None else x.shape[1]
        z: Tensor = self.start
        drawn = []
        with self.data_plate(x, size):
            for t, inside, was_seen in _steps(num_steps, lengths, seen):
                with poutine.mask(mask=inside):
                    prior = self._latent(self.transition, [z], "the transition")
                    z = pyro.sample(f"z_{t + 1}", prior)
                    emitted = self.likelihood(self.decoder(z))
                    with poutine.mask(mask=was_seen):
                        value = None if x is None else x[:, t]
                        drawn.append(observe(f"x_{t + 1}", emitted, value))

        event_dim = len(emitted.event_shape)
        return torch.stack(drawn, -event_dim - 1)

    @pyro_method
    def guide(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        seen: Tensor | None = None,
        **_: object,
    ) -> None:
        """The recognition program; same arguments as :meth:`model`."""
        context = self.context(x, self.what_is_seen(x, lengths, seen))
        z: Tensor = self.start
        with pyro.plate("data", len(x)):
            for t, inside, _seen in _steps(x.shape[1], lengths, seen):
                with poutine.mask(mask=inside):
                    q = self._latent(self.combiner, [z, context[:, t]], "the combiner")
                    z = pyro.sample(f"z_{t + 1}", q)

    def what_is_seen(
        self,
        x: Tensor,
        lengths: Tensor | None,
        seen: Tensor | None,
    ) -> Tensor:
        """At which steps something was seen, ``(B, T)``."""
        every = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if lengths is not None:
            every = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
        return every if seen is None else every & seen

    def _latent(
        self,
        network: nn.Module,
        inputs: list[Tensor],
        source: str,
    ) -> TorchDistribution:
        return of_length(network(*inputs), self.latent_dim, network, source=source)


def _steps(
    num_steps: int, lengths: Tensor | None, seen: Tensor | None
) -> Iterator[tuple[int, Tensor | bool, Tensor | bool]]:
    """Every step, whether sequences go on so far, and whether something was seen
    there."""
    for t in pyro.markov(range(num_steps)):
        inside = True if lengths is None else t < lengths
        was_seen = True if seen is None else seen[:, t]
        yield t, inside, was_seen


class Backward(nn.Module):
    """A recurrent network from the end of a sequence to its start, over vectors.

    Steps at which nothing was seen enter as zeros, with an indicator that says so;
    whatever stands there does not matter.

    Arguments:
        in_features: Width of x_t.
        width: Width of the states h_t.

    Example:
        >>> import torch
        >>> Backward(3, 6)(torch.zeros(4, 5, 3), torch.ones(4, 5, dtype=torch.bool)).shape
        torch.Size([4, 5, 6])
    """

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(in_features + 1, width, batch_first=True)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        indicator = seen.unsqueeze(-1)
        known = torch.where(indicator, x, 0.0)
        inputs = torch.cat([known, indicator.to(x.dtype)], -1)

        states, _ = self.rnn(inputs.flip(1))
        return states.flip(1)
