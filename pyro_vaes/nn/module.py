"""The base of every model and guide: a PyroModule whose parameters have names of their own.

Pyro's parameter store is global and keyed by name, so two instances of one class would share (and fight over) their
parameters under :class:`~pyro.infer.SVI`. A :class:`ProgramModule` therefore carries a name that is unique in the
process.
"""

import itertools

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from .heads import LogVarianceHead, MultivariateNormalHead, NormalHead, SigmoidNormalHead

_instances = itertools.count()


class ProgramModule(PyroModule):
    """A :class:`~pyro.nn.PyroModule` whose name in Pyro's parameter store no other instance has.

    Copies (``copy.deepcopy``, unpickling) get a new name as well. Methods that hold sample statements are decorated
    with :func:`pyro.nn.pyro_method`.
    """

    def __init__(self) -> None:
        super().__init__(name=self._unique_name())

    def _unique_name(self) -> str:
        return f"{type(self).__name__}_{next(_instances)}"

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._pyro_set_supermodule(self._unique_name(), self._pyro_context)

    def data_plate(self, x: Tensor | None, size: int) -> pyro.plate:
        """The plate of the data: of the rows of ``x``, or of ``size`` new ones where that is None."""
        return pyro.plate("data", size if x is None else len(x))


class StandardNormal(nn.Module):
    """The prior N(0, scale² I) over ``dim`` dimensions, as a module whose forward returns the distribution.

    Arguments:
        dim: Number of dimensions.
        scale: Standard deviation, positive.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        if dim < 1 or scale <= 0:
            raise ValueError(f"The prior needs dim >= 1 and scale > 0, but got dim={dim} and scale={scale}.")
        self.loc = nn.Buffer(torch.zeros(dim), persistent=False)
        self.scale = nn.Buffer(torch.full((dim,), float(scale)), persistent=False)

    def forward(self) -> TorchDistribution:
        return Normal(self.loc, self.scale).to_event(1)


def as_posterior(output: object, source: str = "the encoder") -> TorchDistribution:
    """Read what a recognition network returned as a distribution over a latent vector.

    Arguments:
        output: A distribution over vectors, a factorised one with batch shape ``(..., d)``, or a pair ``(loc, scale)``
            of tensors with shape ``(..., d)`` (scale: standard deviations).
        source: What the network is called in the error message.

    Returns:
        A distribution with event shape ``(d,)``.

    Raises:
        ValueError: The output is none of these.
    """
    if isinstance(output, tuple | list) and [isinstance(o, Tensor) for o in output] == [True, True]:
        return Normal(*output).to_event(1)

    if isinstance(output, TorchDistributionMixin):
        return output if len(output.event_shape) else output.to_event(1)

    if isinstance(output, torch.distributions.Distribution):
        raise ValueError(
            f"{source} returned torch's {type(output).__name__}, which Pyro cannot sample from at a site: return "
            f"pyro.distributions.{type(output).__name__} instead."
        )

    raise ValueError(
        f"{source} returned {type(output).__name__}, but a distribution over the latent vector is wanted, or a pair "
        "(loc, scale) of tensors. Put a head behind the network, for example "
        "nn.Sequential(MLP(784, [500], 500), NormalHead(500, latent_dim))."
    )


def of_length(
    output: object,
    length: int,
    network: nn.Module,
    *,
    source: str = "the encoder",
    argument: str = "latent_dim",
) -> TorchDistribution:
    """Read what a network returned as a distribution over a latent vector of the length that the model was built for.

    Arguments:
        output: What the network returned, see :func:`as_posterior`.
        length: The length wanted.
        network: The network that returned it, whose head the error message names.
        source: What the network is called there.
        argument: What the length is called there.

    Raises:
        ValueError: It is no distribution, or its vectors have another length.
    """
    q = as_posterior(output, source)
    if len(q.event_shape) == 1 and q.event_shape[0] != length:
        (got,) = q.event_shape
        kinds = NormalHead | SigmoidNormalHead | LogVarianceHead | MultivariateNormalHead

        heads = [m for m in network.modules() if isinstance(m, kinds) and m.loc.out_features == got]
        cure = f"let it return vectors of length {length}"
        if heads:
            kind, features = type(heads[-1]).__name__, heads[-1].loc.in_features
            cure = f"give the head {length} outputs, {kind}({features}, {length})"
        raise ValueError(
            f"{source[0].upper()}{source[1:]} returns a distribution over vectors of length {got}, but {argument} is "
            f"{length}: {cure}."
        )

    return q


def observe(name: str, fn: TorchDistribution, value: Tensor | None) -> Tensor:
    """Sample the site ``name`` from ``fn``, observed at ``value`` unless that is None, after comparing event shapes.

    Raises:
        ValueError: The right-most dimensions of ``value`` differ from the event shape of ``fn``.
    """
    event_shape = fn.event_shape
    if value is not None and value.shape[value.dim() - len(event_shape) :] != event_shape:
        got, wanted = tuple(value.shape[1:]), tuple(event_shape)
        cure = (
            "flatten images first (x.flatten(1)), or use a network and a likelihood with event_dim=3?"
            if len(got) > len(wanted)
            else "is the decoder's last layer as wide as the data?"
        )
        raise ValueError(f"A datum of {name!r} has shape {got}, but the decoder returns {wanted}: {cure}")
    return pyro.sample(name, fn, obs=value)
