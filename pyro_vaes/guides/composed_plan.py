"""Who draws what in a composed guide: what one look at the model has found."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyro.poutine.runtime import Message

from pyro_vaes.programs import plates

from .latents import Latents, are_equal, latent_site, read_site
from .masks import has_mask
from .rules.site import KnownSite


@dataclass
class Plan:
    """Who draws what, for batches of one structure.

    Attributes:
        known: The latent sites in the order of the model.
        indices: The position of the rule of each; None for the prior.
        depth: Number of batch dimensions that the plates of the model use.
        groups: The latents that a site is drawn together with, where a guide does that.
    """

    known: dict[str, KnownSite]
    indices: dict[str, int | None]
    depth: int
    groups: dict[str, Latents] = field(default_factory=dict)


def known_site(message: Message) -> KnownSite:
    """What one look at a program has found of a latent site."""
    fn, name = message["fn"], message["name"]
    is_discrete = fn.has_enumerate_support or getattr(fn.support, "is_discrete", False)
    return KnownSite(
        name=name,
        plates=plates(message),
        fn=fn,
        reals=None if is_discrete else read_site(name, fn.event_shape, fn.support),
        is_masked=has_mask(fn, message["mask"]),
        scale=message["scale"],
        infer=dict(message["infer"]),
    )


def latents_of(messages: Mapping[str, Message], known: list[KnownSite]) -> Latents:
    """Sites that one guide draws together, as one vector.

    Raises:
        ValueError: One is discrete, or they lie in different plates.
    """
    around = {tuple(plate.name for plate in site.plates) for site in known}
    if len(around) > 1:
        raise ValueError(
            f"The latent sites {[site.name for site in known]} lie in different plates "
            f"{sorted(around)}, so their joint posterior is none of rows of one kind: "
            "a value of the outer site belongs to many rows of the inner one. Give "
            "each a rule of its own, the inner one with given=[the outer one]?"
        )

    stack = known[0].plates
    first = stack[0] if stack else None
    return Latents(
        sites=tuple(latent_site(messages[site.name]) for site in known),
        plate=first.name if first else "",
        dim=first.dim if first else -1,
        full_size=first.num_data if first else None,
        subsample_size=None,
        rows=None,
        around=tuple(plate.name for plate in stack),
        is_masked=any(site.is_masked for site in known),
        scales_differ=not are_equal([site.scale for site in known]),
    )
