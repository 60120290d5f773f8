"""What distributions over vectors, and others with tensors as parameters, share."""

import abc
from typing import Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints


class TensorDistribution(TorchDistribution):
    """A distribution whose tensors have all of its batch dimensions in front.

    A subclass defines :meth:`_log_density`, and the moments that it has in closed form.
    """

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """Expand the attributes that are tensors or distributions, or tuples of these; the others are shared."""
        batch_shape = torch.Size(batch_shape)

        def expanded(value: object) -> object:
            if isinstance(value, Tensor):
                return value.expand(batch_shape + value.shape[len(self.batch_shape) :])
            if isinstance(value, Distribution):
                return value.expand(batch_shape)
            if isinstance(value, tuple):
                return tuple(map(expanded, value))
            return value

        new = self._get_checked_instance(type(self), _instance)
        vars(new).update({name: expanded(value) for name, value in vars(self).items()})

        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_density(value)

    @abc.abstractmethod
    def _log_density(self, value: Tensor) -> Tensor:
        """log p(value), for a value that need not be looked at."""

    def _no_moment(self) -> Tensor:
        found = f"{type(self).__name__} has no mean and no variance in closed form"
        raise NotImplementedError(f"{found}: average draws instead.")

    mean = variance = property(_no_moment)


class VectorDistribution(TensorDistribution):
    """A distribution over vectors as long as the last dimension of each of its parameters.

    Arguments:
        parameters: Tensors by the names that ``arg_constraints`` has; as attributes they have all batch dimensions.
    """

    arg_constraints: dict[str, constraints.Constraint]
    support = constraints.real_vector
    loc: Tensor

    def __init__(self, *, validate_args: bool | None = None, **parameters: Tensor) -> None:
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        batch_shape, event_shape = self.infer_shapes(**shapes)

        for name, parameter in parameters.items():
            first = -self.arg_constraints[name].event_dim
            shape = batch_shape + parameter.shape[first:-1] + event_shape
            setattr(self, name, parameter.expand(shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def _noise(self, sample_shape: torch.Size) -> Tensor:
        """Standard normal numbers for draws of this shape."""
        shape = self._extended_shape(sample_shape)
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    @classmethod
    def infer_shapes(cls, **arg_shapes: torch.Size) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape from the shapes of the arguments."""
        event_shapes = [shape[-1:] for shape in arg_shapes.values()]
        batch_shapes = [shape[: len(shape) - cls.arg_constraints[name].event_dim] for name, shape in arg_shapes.items()]
        return torch.broadcast_shapes(*batch_shapes), torch.broadcast_shapes(*event_shapes)


def base_normal(p: Distribution, q: Independent) -> Normal:
    """The normal of the single elements of q, to which p has a closed-form KL divergence if q is over vectors.

    Raises:
        NotImplementedError: q is no diagonal normal over vectors.
    """
    normal = q.base_dist
    if not isinstance(normal, Normal) or q.reinterpreted_batch_ndims != 1:
        found = f"No closed-form KL divergence from {type(p).__name__} to {q} is known"
        raise NotImplementedError(f"{found}: estimate it from draws.")
    return normal
