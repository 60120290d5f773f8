"""The joint density of a program as a function of one unconstrained latent vector per datum.

    log p(x, z) = sum over sites of log p(site | parents) + log |det d value / d z|

found by conditioning the program on all its latents and tracing it, so nothing is known here about its networks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.distributions.distribution import Distribution

from pyro_vaes.programs import (
    DENSITIES,
    Program,
    Sites,
    ambient_scale,
    plates,
    run,
    sites,
)

from .given import Given
from .latents import Latents, LatentSite
from .masks import without_mask
from .plate_shapes import Layout


@dataclass(frozen=True)
class JointSite:
    """One site of the conditioned program.

    Attributes:
        name: Its name.
        fn: Its distribution, given its parents.
        value: Its value, observed or drawn from the vector.
        scale: Its scale, relative to that of the latent sites: a subsampling plate cancels, a KL weight of beta makes
            this 1 / beta at the observations.
        mask: Its mask, if any.
        latent: What is known of a latent site; None for an observation.
        log_det: The log |det| of the map onto a latent's support, with the batch's shape.
    """

    name: str
    fn: Distribution
    value: Tensor
    scale: float | Tensor
    mask: bool | Tensor | None
    latent: LatentSite | None
    log_det: Tensor | None


@dataclass(frozen=True)
class Joint:
    """log p(x, z) of one batch.

    Arguments:
        model: The program.
        latents: Its latent sites and their plate.
        given: Its arguments, and the rows that a subsampling plate holds; None where the plate does not draw any.
    """

    model: Program
    latents: Latents
    given: Given

    def __call__(self, z: Tensor) -> Tensor:
        """log p(x, z) per datum, ``(B,)``, of the vectors ``(B, numel)``."""
        return self.log_prob(self.sites(z), len(z))

    def sites(self, z: Tensor) -> list[JointSite]:
        """The program's sites with their latents set by ``z``, which has shape ``(B, numel)``."""
        given, log_dets = self.given, {}
        data = dict(given.upstream)
        if given.rows is not None:
            data[self.latents.plate] = given.rows

        for site, part in zip(self.latents.sites, self.latents.split(z), strict=True):
            shape = self.layout(len(z)).shape + part.shape[1:]
            value, log_det = site.constrain(part.reshape(shape))
            data[site.name], log_dets[site.name] = value, log_det

        # parameters stay visible: the training loop and SVI find them, and a handler keeps
        # them with their modules
        with poutine.block(hide_types=["sample", "observe"]):
            trace = run(self.model, given.args, given.kwargs, given=data)

        messages = self._of_these(sites(trace, DENSITIES))
        known = {site.name: site for site in self.latents.sites}

        scales = {}
        for name, message in messages.items():
            self._refuse(message, known)
            scales[name] = ambient_scale(message, observed=name not in known)
        weight = _common([scales[name] for name in known])

        found = []
        for name, message in messages.items():
            scale = 1.0 if name in known else scales[name] / weight
            fn, value, mask = message["fn"], message["value"], message["mask"]
            if name in known:
                # masked rows are drawn from the prior, which gives them a curvature here too
                fn, mask = without_mask(fn), None
            found.append(JointSite(name, fn, value, scale, mask, known.get(name), log_dets.get(name)))
        return found

    def _refuse(self, message: Message, known: Mapping[str, LatentSite]) -> None:
        name = message["name"]
        around = {plate.name for plate in plates(message)}
        missing = set(self.latents.all_plates) - around
        if missing:
            raise ValueError(
                f"The site {name!r} lies outside the plate {min(missing)!r}, so its "
                "density cannot be shared out among the data. Put it into the plate."
            )
        if not message["is_observed"]:
            raise ValueError(
                f"The site {name!r} was not there when the program first ran (sites "
                f"{list(known)}); a program whose latent sites change from run to run has "
                "no posterior around one point."
            )

    def log_prob(self, sites: list[JointSite], size: int) -> Tensor:
        """log p of the given sites, in the unconstrained space, per datum: shape ``(B,)``."""
        total: Tensor | float = 0.0
        for site in sites:
            log_prob = site.fn.log_prob(site.value)
            if site.log_det is not None:
                log_prob = log_prob + site.log_det
            log_prob = scale_and_mask(log_prob, site.scale, site.mask)
            total = total + self.rows_first(log_prob).reshape(size, -1).sum(1)
        assert isinstance(total, Tensor) and total.shape == (size,)
        return total

    def layout(self, rows: int) -> Layout:
        """Where the rows of the vectors lie among the batch dimensions of the program."""
        return self.given.layout or self.latents.layout(rows)

    def rows_first(self, batch: Tensor, *, right: int = 0, left: int = 0) -> Tensor:
        """Move the data dimension behind the ``left`` leading ones, given ``right`` dimensions behind the batch's."""
        return self.layout(0).rows_first(batch, right=right, left=left)

    def _of_these(self, messages: Sites) -> Sites:
        """Without the sites before the first latent one that are drawn already: they do not depend on it."""
        upstream, found = self.given.upstream, Sites()
        for name, message in messages.items():
            if found or name not in upstream:
                found[name] = message
        return found


def _common(scales: list[float | Tensor]) -> float | Tensor:
    first, *rest = scales
    if any(not torch.equal(torch.as_tensor(first), torch.as_tensor(s)) for s in rest):
        raise ValueError(
            f"The latent sites have different scales ({scales}), so no Gaussian around one mode is the optimum of the "
            "bound. Use the same KL weight for all of them."
        )
    return first


@contextmanager
def refuse_dependence() -> Iterator[None]:
    """Inside, a batch norm that uses the batch's statistics, or a dropout that is active, raises when it is called."""

    def look(module: nn.Module, _: object) -> None:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"The model uses {module} in training mode, which ties the data of a batch together, while the Laplace "
                "posterior needs them independent given their latents. Use GroupNorm or LayerNorm, or call .eval()?"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"The model uses {module} in training mode, so that its density changes from one evaluation to the "
                "next and has no mode to climb to. Leave the dropout out, or call .eval() on it?"
            )

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
