"""The variational ladder auto-encoder (LADDER): independent latents that enter a deterministic network at L depths.

    p(z) = prod_l p(z_l),     t_L = f(z_L),    t_l = u_l(merge(t_{l+1}, v_l(z_l))),    x ~ r(x | t_1)
    q(z | x) = prod_l q(z_l | h_{l-1}),        h_0 = x,    h_l = g_l(h_{l-1})

Level 1 is nearest the data. There is no stochastic path between levels: the depth of the network in front of a rung is
all that sets what it codes. (Not the ladder of Sønderby et al., 2016, which is a hierarchy with a top-down guide.)

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
    | https://arxiv.org/abs/1702.08396
"""

from collections.abc import Sequence

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule, StandardNormal, observe, of_length


class LadderVAE(ProgramModule):
    """A model/guide pair with the independent latent sites ``"z_1" .. "z_L"`` in the plate ``"data"``.

    The four lists of networks run from the rung nearest the data upwards, as
    :func:`~pyro_vaes.nn.small_ladder`, ``medium_ladder``, ``large_ladder`` and ``mlp_ladder`` return them.

    Arguments:
        encoders: g_1 .. g_{L-1}, the deterministic path upwards: x to h_1, h_1 to h_2, ...
        rungs: L modules that return distributions, of z_1 given x, z_2 given h_1, ...
        merges: L - 1 modules ``(t_{l+1}, z_l) -> features``, see :class:`~pyro_vaes.nn.GatedAdd` and
            :class:`~pyro_vaes.nn.Concatenate`.
        decoders: L modules: u_1, whose output are the parameters of the likelihood, .., u_{L-1}, and f.
        likelihood: ``parameters -> distribution`` of x; Laplace with scale 1/8 gives the authors' loss on MNIST.
        latent_dims: Dimensions of z_1, .., z_L.
        priors: L modules whose ``forward()`` returns the distribution of z_l; N(0, I) by default.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import LaplaceLikelihood, mlp_ladder
        >>> ladder = LadderVAE(*mlp_ladder(64, [2, 2, 2], width=16), LaplaceLikelihood(0.125), [2, 2, 2])
        >>> ladder.model(size=3).shape
        torch.Size([3, 64])
        >>> [q.event_shape for q in ladder.posteriors(torch.zeros(5, 64))]
        [torch.Size([2]), torch.Size([2]), torch.Size([2])]
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        rungs: Sequence[nn.Module],
        merges: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        likelihood: nn.Module,
        latent_dims: Sequence[int],
        *,
        priors: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        levels = len(latent_dims)
        priors = [StandardNormal(dim) for dim in latent_dims] if priors is None else priors
        got = [len(part) for part in (encoders, rungs, merges, decoders, priors)]
        if levels < 1 or got != [levels - 1, levels, levels - 1, levels, levels]:
            raise ValueError(
                f"{levels} latent_dims need {levels} rungs, decoders and priors, with {levels - 1} encoders and merges "
                f"between them, but got {got[1]} rungs, {got[3]} decoders, {got[4]} priors, {got[0]} encoders and "
                f"{got[2]} merges."
            )

        self.encoders, self.rungs = nn.ModuleList(encoders), nn.ModuleList(rungs)
        self.merges, self.decoders = nn.ModuleList(merges), nn.ModuleList(decoders)
        self.likelihood, self.priors = likelihood, nn.ModuleList(priors)
        self.latent_dims = tuple(latent_dims)

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program; ``x`` with shape ``(B, ...)`` is observed, or ``size`` data are drawn."""
        with self.data_plate(x, size):
            z = [pyro.sample(f"z_{level}", prior()) for level, prior in enumerate(self.priors, start=1)]
            return observe("x", self.likelihood(self.decode(z)), x)

    @pyro_method
    def guide(self, x: Tensor, **_: object) -> None:
        """The recognition program; same arguments as :meth:`model`."""
        with pyro.plate("data", len(x)):
            for level, q in enumerate(self.posteriors(x), start=1):
                pyro.sample(f"z_{level}", q)

    def path(self, x: Tensor) -> list[Tensor]:
        """h_0 = x, h_1, .., h_{L-1}: what the rungs read."""
        path = [x]
        for encoder in self.encoders:
            path.append(encoder(path[-1]))
        return path

    def posteriors(self, x: Tensor) -> list[TorchDistribution]:
        """q(z_1 | x), .., q(z_L | x), each with batch shape ``(B,)`` and event shape ``(d_l,)``."""
        return [
            of_length(rung(h), dim, rung, source=f"the rung of z_{index + 1}", argument=f"latent_dims[{index}]")
            for index, (rung, h, dim) in enumerate(zip(self.rungs, self.path(x), self.latent_dims, strict=True))
        ]

    def decode(self, z: Sequence[Tensor]) -> Tensor:
        """The parameters of the likelihood given z_1, .., z_L, each with shape ``(..., d_l)``; leading ones broadcast.

        Raises:
            ValueError: There is another number of latents than of rungs.
        """
        if len(z) != len(self.latent_dims):
            raise ValueError(
                f"decode takes one tensor for each of the {len(self.latent_dims)} rungs, but got {len(z)}; draw the "
                "others from the prior?"
            )
        *merged, top = self.decoders
        t = top(z[-1])
        rungs = list(zip(merged, self.merges, z[:-1], strict=True))
        for decoder, merge, z_l in reversed(rungs):
            t = decoder(merge(t, z_l))
        return t
