"""What a model says of its observation in the run that a bound makes of it, read off without another run."""

from dataclasses import dataclass
from typing import cast

from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Distribution

from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs.recorder import SiteRecorder

__all__ = ["Observation", "ObservationRecorder"]


@dataclass(frozen=True)
class Observation:
    """An observed site of one run of a model.

    Attributes:
        name: The site.
        message: Its message.
    """

    name: str
    message: Message

    @property
    def fn(self) -> Distribution:
        return cast(Distribution, self.message["fn"])

    @property
    def value(self) -> Tensor:
        return cast(Tensor, self.message["value"])

    @property
    def mean(self) -> Tensor:
        """The mean of the observation given the run's latents, ``(*batch, *event)``.

        Raises:
            ValueError: The distribution has none in closed form, or the run enumerates a latent.
        """
        fn, declared = self.fn, {f.dim for f in self.message["cond_indep_stack"]}
        spare = [d for d in range(-len(fn.batch_shape), 0) if d not in declared and fn.batch_shape[d] > 1]
        if spare:
            raise UsageError(
                f"The observation {self.name!r} has batch shape {tuple(fn.batch_shape)}, of which no plate declares "
                f"dimension {spare[0]}: an enumerated latent has no one draw whose mean could be taken.",
                use_bound(),
            )
        try:
            return cast(Tensor, fn.mean)
        except NotImplementedError:
            raise UsageError(
                f"The distribution of the observation {self.name!r} has no mean in closed form, which the "
                "reconstruction is.",
                use_bound(),
                Cure("likelihood", words="a likelihood that has one"),
            ) from None

    def num_data(self, plate: str) -> int:
        """The number of data for which the rows of this plate stand."""
        frame = next(f for f in self.message["cond_indep_stack"] if f.name == plate)
        return cast(int, frame.size if frame.full_size is None else frame.full_size)


class ObservationRecorder(SiteRecorder):
    """Around a model: keeps the observed sites of its latest run, those whose events have a shape."""

    def wants(self, msg: Message) -> bool:
        return bool(msg["is_observed"] and msg["fn"].event_shape and not msg["infer"].get("_deterministic"))

    def take(self, name: str | None = None) -> Observation:
        """The one observation, or that at the given site; afterwards nothing holds on to the run's graph.

        Raises:
            ValueError: There is no such site, or there are several and no name is given.
        """
        found = self.take_all()
        if name is None and len(found) == 1:
            name = next(iter(found))
        if name not in found:
            raise ValueError(
                f"The observation {'is one of several' if name is None else repr(name) + ' is none'} of the model's "
                f"observed sites with an event shape, {sorted(found)}. Name one of them, site='x'? A datum's own "
                "dimensions are event dimensions: .to_event(1)."
            )
        assert name is not None
        return Observation(name, found[name])
