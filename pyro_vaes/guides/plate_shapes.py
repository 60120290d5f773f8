"""Posteriors where the plate of the data is not the innermost one: other plates, to its right, hold no latent site."""

from typing import cast

from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor

from pyro_vaes.distributions import (
    InverseAutoregressive,
    RecursiveMixture,
    event_elements,
    has_transforms,
    map_parameters,
)


def move_behind_plate(q: TorchDistribution, inner: tuple[int, ...]) -> TorchDistribution:
    """The rows' posteriors, batch shape ``(B,)``, with the batch shape ``(B, *inner)``; others stay as they are.

    Arguments:
        q: The posteriors.
        inner: As many ones as there are dimensions to the right of the data plate.

    Raises:
        ValueError: The family cannot be made anew from its parameters.
    """
    if not inner or len(q.batch_shape) != 1:
        return q

    def behind(parameter: Tensor, event_dim: int) -> Tensor:
        event = parameter.shape[parameter.dim() - event_dim :]
        return parameter.reshape(parameter.shape[:1] + inner + event)

    if isinstance(q, RecursiveMixture):
        components = [move_behind_plate(c, inner) for c in q.components]
        return RecursiveMixture(components, [behind(a, 0) for a in q.logits])

    try:
        if has_transforms(q) and all(isinstance(t, InverseAutoregressive) for t in q.transforms):
            base = move_behind_plate(cast(TorchDistribution, q.base_dist), inner)
            steps = []
            for t in cast(list[InverseAutoregressive], q.transforms):
                steps.append(InverseAutoregressive(t.network, behind(t.context, 1), t.order))
            return TransformedDistribution(base, steps)

        # what another map holds for each row cannot be moved
        if has_transforms(event_elements(q)):
            raise TypeError
        return map_parameters(q, behind)
    except (AttributeError, NotImplementedError, TypeError):
        raise ValueError(
            f"The model has plates to the right of its data plate, but the encoder's {type(q).__name__} has the batch "
            f"shape {tuple(q.batch_shape)} and cannot be moved there from outside. Let the encoder return the batch "
            f"shape (B, {', '.join('1' for _ in inner)}), or make the other plates event dimensions with .to_event?"
        ) from None
