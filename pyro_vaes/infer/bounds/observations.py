"""What a model says of its observation in the run that a bound makes of it."""

from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import Role, SiteRecorder, plates


def observation_mean(site: Message) -> Tensor:
    """The mean of an observation given its run's latents, ``(*batch, *event)``.

    Arguments:
        site: The observed site.

    Raises:
        ValueError: The distribution has no mean in closed form, or the run enumerates a
            latent.
    """
    fn, name = site["fn"], site["name"]
    declared = {plate.dim for plate in plates(site)}

    for dim in range(-len(fn.batch_shape), 0):
        if dim not in declared and fn.batch_shape[dim] > 1:
            raise UsageError(
                f"The observation {name!r} has batch shape {tuple(fn.batch_shape)}, "
                f"of which no plate declares dimension {dim}: an enumerated latent has no "
                "one draw whose mean could be taken.",
                use_bound(),
            )

    try:
        return fn.mean
    except NotImplementedError:
        raise UsageError(
            f"The distribution of the observation {name!r} has no mean in closed form, which the reconstruction is.",
            use_bound(),
            Cure("likelihood", words="a likelihood that has one"),
        ) from None


class ObservationRecorder(SiteRecorder):
    """Around a model: keeps the observed sites of its latest run."""

    def __init__(self) -> None:
        super().__init__(frozenset({Role.OBSERVED}))

    def take(self, name: str | None) -> Message:
        """The one observation whose events have a shape, or that at the given site.

        Afterwards nothing holds on to the run's graph.

        Raises:
            ValueError: There is no such site, or there are several and no name is given.
        """
        found = {n: s for n, s in self.take_all().items() if s["fn"].event_shape}
        if name is None and len(found) == 1:
            (name,) = found

        if name is None or name not in found:
            what = "is one of several" if name is None else f"{name!r} is none"
            raise ValueError(
                f"The observation {what} of the model's observed sites with an event shape, "
                f"{sorted(found)}. Name one of them, site='x'? A datum's own dimensions are "
                "event dimensions: .to_event(1)."
            )
        return found[name]
