"""The latent sites of a program and their data plate, found by running it once."""

from pyro.poutine.runtime import Message

from pyro_vaes.programs import DRAWN, Plate, Program, dry_run, plates, sites

from .given import Given, differentiable
from .latents import Latents, are_equal, latent_site
from .masks import has_mask


def find_latents(model: Program, *args: object, **kwargs: object) -> Latents:
    """Run the program once, aside, and find its latent sites and their plate.

    Raises:
        ValueError: There is no latent site, one is discrete, one has no data plate
            around it, they do not share one plate, or a support depends on other
            variables.
    """
    with differentiable(Given(args, kwargs)) as given:
        trace = dry_run(model, given.args, given.kwargs)

    messages = list(sites(trace, DRAWN).values())
    if not messages:
        raise ValueError(
            "The model has no latent sample site, so there is nothing for a guide to "
            "infer. Is every site observed, also the latent ones?"
        )

    found = {_only_plate(m) for m in messages}
    if len(found) > 1:
        raise ValueError(
            f"The latent sites {[m['name'] for m in messages]} lie in different plates "
            f"{sorted({plate.name for plate in found})}; an amortized guide needs them "
            "all in one data plate."
        )

    plate, rows = found.pop(), given.size
    follows = not plate.subsamples and plate.num_data == rows
    return Latents(
        sites=tuple(latent_site(m) for m in messages),
        plate=plate.name,
        dim=plate.dim,
        full_size=None if follows else plate.num_data,
        subsample_size=plate.size if plate.subsamples else None,
        rows=rows,
        is_masked=any(has_mask(m["fn"], m["mask"]) for m in messages),
        scales_differ=not are_equal([m["scale"] for m in messages]),
    )


def _only_plate(message: Message) -> Plate:
    """The one plate around a latent site."""
    name, around = message["name"], plates(message)
    if not around:
        raise ValueError(
            f"The latent site {name!r} lies outside the data plate: it is global, one "
            "value for the whole data set, and an amortized guide infers one value "
            "per datum. Put it into `with pyro.plate('data', len(x)):`, or learn it "
            "as a parameter (pyro.param)?"
        )

    if len(around) > 1:
        raise ValueError(
            f"The latent site {name!r} lies in the nested plates "
            f"{[plate.name for plate in around]}; an amortized guide needs one data "
            "plate. Make the inner plates event dimensions with "
            ".expand([...]).to_event(...)?"
        )

    return around[0]
