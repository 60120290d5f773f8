"""Data in groups: a latent of the group that its members share, and one of each member.

    p(x, u, z) = prod_g p(u_g) prod_m p(z_gm) p(x_gm | u_g, z_gm)
    q(u, z | x) = prod_g q(u_g | x_g) prod_m q(z_gm | x_gm, u_g)

A group may have any number of members: members that are missing are masked. Their latents
follow the prior, and nothing is counted for them.

References:
    | Multi-Level Variational Autoencoder (Bouchacourt, Tomioka & Nowozin, 2018)
    | https://arxiv.org/abs/1705.08841
"""

from collections.abc import Sequence

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedMixture, TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.distributions import map_parameters
from pyro_vaes.nn import ProgramModule, StandardNormal, observe, of_length


class GroupedVAE(ProgramModule):
    """A model/guide pair with a latent for each group and for each of its members.

    Sites: ``"u"`` (latent) in the plate ``"groups"`` (dimension -2), and ``"z"`` (latent)
    and ``"x"`` (observation) in the plate ``"members"`` (dimension -1) inside it. The unit
    of "per datum" is a group.

    Arguments:
        group_encoder: ``(x, mask) -> distribution`` of u, batch shape ``(groups,)``, such
            as :class:`MeanOfMembers`; the mask is None where no member is missing.
        member_encoder: ``(x, u) -> distribution`` of z, where u has the shape
            ``(groups, 1, d)``.
        decoder: ``(u, z) -> parameters`` of the likelihood, batch dimensions broadcast.
        likelihood: ``parameters -> distribution`` of x, see
            :mod:`pyro_vaes.nn.likelihoods`.
        latent_dims: Dimensions of u and of z.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead
        >>> group = MeanOfMembers(MLP(6, [8], 8), NormalHead(8, 2))
        >>> member = Chain(MLP(6 + 2, [8], 8), NormalHead(8, 3))
        >>> decoder, likelihood = MLP(2 + 3, [8], 6), GaussianLikelihood(0.3)
        >>> vae = GroupedVAE(group, member, decoder, likelihood, latent_dims=(2, 3))
        >>> vae.model(size=(4, 5)).shape
        torch.Size([4, 5, 6])
    """

    def __init__(
        self,
        group_encoder: nn.Module,
        member_encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        latent_dims: Sequence[int],
    ) -> None:
        super().__init__()
        if len(latent_dims) != 2:
            raise ValueError(
                "latent_dims are two dimensions, that of u, of a group, and that of z, "
                f"of a member, but got {latent_dims!r}."
            )
        self.group_encoder, self.member_encoder = group_encoder, member_encoder
        self.decoder, self.likelihood = decoder, likelihood
        self.latent_dims = tuple(latent_dims)
        self.group_prior = StandardNormal(latent_dims[0])
        self.member_prior = StandardNormal(latent_dims[1])

    @pyro_method
    def model(
        self,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        size: tuple[int, int] = (1, 1),
    ) -> Tensor:
        """The generative program.

        Arguments:
            x: Data with shape ``(groups, members, ...)``, padded where a group has
                fewer members; None to draw some.
            mask: Which members are there, ``(groups, members)``, boolean; None for all.
            size: Numbers of groups and of members to draw.
        """
        num_groups, num_members = size if x is None else x.shape[:2]
        _refuse_mask(mask, (num_groups, num_members))

        with pyro.plate("groups", num_groups, dim=-2):
            u = pyro.sample("u", self.group_prior())
            with (
                pyro.plate("members", num_members, dim=-1),
                poutine.mask(mask=_all(mask)),
            ):
                z = pyro.sample("z", self.member_prior())
                return observe("x", self.likelihood(self.decoder(u, z)), x)

    @pyro_method
    def guide(self, x: Tensor, mask: Tensor | None = None, **_: object) -> None:
        """The recognition program; same arguments as :meth:`model`."""
        num_groups, num_members = x.shape[:2]
        _refuse_mask(mask, (num_groups, num_members))

        with pyro.plate("groups", num_groups, dim=-2):
            u = pyro.sample("u", self.group_posterior(x, mask))
            with (
                pyro.plate("members", num_members, dim=-1),
                poutine.mask(mask=_all(mask)),
            ):
                q = self.member_posterior(x, u)
                if mask is not None:
                    q = MaskedMixture(mask, self.member_prior(), q)
                pyro.sample("z", q)

    def group_posterior(
        self,
        x: Tensor,
        mask: Tensor | None = None,
    ) -> TorchDistribution:
        """q(u | x) with batch shape ``(groups, 1)``."""
        encoder = self.group_encoder
        source = "the group encoder"
        q = of_length(encoder(x, mask), self.latent_dims[0], encoder, source=source)
        if q.batch_shape != x.shape[:1]:
            raise ValueError(
                f"The group encoder returns the batch shape {tuple(q.batch_shape)}, "
                f"but one posterior for each of the {len(x)} groups is wanted: pool "
                "over members, as MeanOfMembers(features, head) does?"
            )
        return map_parameters(q, _for_all_members)

    def member_posterior(self, x: Tensor, u: Tensor) -> TorchDistribution:
        """q(z | x, u) with batch shape ``(groups, members)``, given u with shape
        ``(groups, 1, d)``."""
        encoder = self.member_encoder
        source = "the member encoder"
        return of_length(encoder(x, u), self.latent_dims[1], encoder, source=source)


class MeanOfMembers(nn.Module):
    """An encoder of groups: the mean of its members' features, and a head.

    Arguments:
        features: ``x -> features`` of every member, ``(groups, members, ...)`` to
            ``(groups, members, width)``.
        head: ``mean of the features -> distribution``.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import NormalHead
        >>> encode = MeanOfMembers(torch.nn.Linear(6, 8), NormalHead(8, 2))
        >>> encode(torch.zeros(4, 5, 6)).batch_shape
        torch.Size([4])
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor, mask: Tensor | None = None) -> object:
        features = self.features(x)
        if mask is None:
            return self.head(features.mean(1))

        # padding may hold anything, NaN too
        present = torch.where(mask.unsqueeze(-1), features, 0.0)
        count = mask.sum(1, keepdim=True).clamp(min=1)
        return self.head(present.sum(1) / count)


def _for_all_members(parameter: Tensor, event_dim: int) -> Tensor:
    """A parameter of groups, ``(groups, ...)``, with a dimension for members:
    ``(groups, 1, ...)``."""
    return parameter.unsqueeze(parameter.dim() - event_dim)


def _all(mask: Tensor | None) -> Tensor | bool:
    return True if mask is None else mask


def _refuse_mask(mask: Tensor | None, shape: tuple[int, ...]) -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
        raise ValueError(
            f"mask says which members are there: boolean, shape {tuple(shape)}, but "
            f"got {mask.dtype} with shape {tuple(mask.shape)}."
        )
