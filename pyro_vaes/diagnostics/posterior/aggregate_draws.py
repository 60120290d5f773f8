"""New data from latents of the fitted aggregate posterior rather than of the prior."""

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch.distributions import Independent

from .aggregate_tables import AggregateReport


class draw_from_aggregate(Messenger):
    """A handler: draw latents from the fitted aggregate, N(m, A) in the prior's coordinates, instead of the prior.

    Under the objective of the aggregate posterior, data drawn from N(0, I) are not those that the decoder has learnt,
    as the aggregate's variance is up to 2. Around the model, ``draw_from_aggregate(report)(vae.model)(size=64)``, or as
    a context in which it runs, and the guide does not.

    Arguments:
        report: Measured on training data.

    Raises:
        ValueError: A site has other units here than where it was measured.

    Example:
        >>> from pyro_vaes.diagnostics import aggregate_report
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> report = aggregate_report(vae.model, vae.guide, torch.randn(50, 3))
        >>> draw_from_aggregate(report)(vae.model)(size=4).shape
        torch.Size([4, 3])
    """

    def __init__(self, report: AggregateReport) -> None:
        super().__init__()
        units = list(report.sites.values())
        moments = zip(report.loc.split(units), report.variance.sqrt().split(units), strict=True)
        self.moments = dict(zip(report.sites, moments, strict=True))

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] not in self.moments or msg["is_observed"] or msg["value"] is not None:
            return
        prior, (loc, scale) = msg["fn"], self.moments[msg["name"]]
        if prior.event_shape.numel() != len(loc):
            raise ValueError(
                f"The site {msg['name']!r} has events of shape {tuple(prior.event_shape)}, but the report has "
                f"{len(loc)} units for it. Measure the same model?"
            )
        base = prior
        while isinstance(base, Independent):
            base = base.base_dist
        loc, scale = (t.to(base.loc).reshape(prior.event_shape) for t in (loc, scale))
        msg["value"] = base.loc + base.scale * (loc + scale * torch.randn_like(base.loc))
        msg["done"] = True
