"""What would be silently wrong about a pair, which Pyro trains without a word.

It looks at masks on one side only, globals that count once for each batch, and guides that
observe.
"""

from collections.abc import Iterator

from pyro.distributions import Delta
from pyro.infer import ELBO
from torch import Tensor, broadcast_tensors

from pyro_vaes.errors import Cure, use_bound
from pyro_vaes.programs import (
    Role,
    find_unit,
    is_auxiliary,
    is_enumerated,
    is_inside,
    mask_of,
    role,
    weighed_sites,
)

from .problems import Problem
from .program_record import ProgramRecord


def mask_problems(guide: ProgramRecord, model: ProgramRecord) -> Iterator[Problem]:
    """Masks around latent sites that only one of the programs has."""
    for name, site in model.drawn.items():
        ours, theirs = mask_of(site), None
        if name in guide.sites:
            theirs = _guide_mask(guide, name)
        elif ours is None or is_enumerated(site):
            continue

        if not _are_equal(ours, theirs):
            where = "model, but not in the guide"
            if ours is None:
                where = "guide, but not in the model"
            elif theirs is not None:
                where = "model and otherwise in the guide"
            yield Problem(
                f"The latent site {name!r} is masked in the {where}: where they "
                "differ, only one of log p and log q counts, so the number is no "
                "bound. Put both under one poutine.mask; what others depend on is to "
                "be drawn from the prior where it is masked.",
                fatal=False,
            )


def _guide_mask(guide: ProgramRecord, name: str) -> Tensor | None:
    """The mask of a guide's site, or of the joint draw of which it is a function."""
    site = guide.sites[name]
    joint = [other for other in guide.sites.values() if is_auxiliary(other)]
    if isinstance(site["fn"], Delta) and joint:
        return mask_of(joint[0])
    return mask_of(site)


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        given = other if one is None else one
        return given is None or bool(given.all())

    try:
        one, other = broadcast_tensors(one, other)
    except RuntimeError:
        return False
    return bool((one == other.to(one.device)).all())


def scale_problems_without_kl(model: ProgramRecord, bound: ELBO) -> Iterator[Problem]:
    """Scales of sites under a bound that has no KL term to weigh."""
    weighed = weighed_sites(model.sites)
    if weighed:
        yield Problem(
            f"{type(bound).__name__} has no KL term and leaves the scales of sites "
            f"out: those of {weighed} have no effect.",
            fatal=False,
            cures=(use_bound(),),
        )


def global_problems(model: ProgramRecord) -> Iterator[Problem]:
    """Global latents beside a plate of data that stands for its own rows alone."""
    plate = find_unit(model.sites)
    if plate is None or plate.subsamples:
        return

    sized = f"pyro.plate({plate.name!r}, N, subsample_size=len(x))"
    words = f"write {sized} in both programs, with N the number of all data"
    cures = (
        Cure("plate", words=words),
        Cure("batch_size", words="take all data as one batch"),
    )

    for name, site in model.drawn.items():
        if not is_inside(site, plate.name):
            yield Problem(
                f"The latent site {name!r} is global, but the plate {plate.name!r} "
                f"stands for the {plate.size} rows of this batch alone, so the KL "
                f"divergence of {name!r} counts once for each batch.",
                fatal=False,
                cures=cures,
            )
            return


def observing_problems(guide: ProgramRecord) -> Iterator[Problem]:
    """Sites that the guide observes: their densities are subtracted from the bound."""
    hidden = "poutine.block(guide, hide_fn=lambda site: site.get('is_observed', False))"

    for name, site in guide.sites.items():
        if role(site) is Role.OBSERVED:
            yield Problem(
                f"The guide observes {name!r}, whose log-density is subtracted from "
                "the bound; where it is the model's own (as in a guide that runs the "
                "model), the likelihood cancels.",
                fatal=False,
                cures=(Cure("guide", words=f"hide it, {hidden}"),),
            )
            return
