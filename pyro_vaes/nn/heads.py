"""Heads: modules whose forward returns a distribution over a vector."""

import math

import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from .glorot import glorot
from .mlp import concatenate

MIN_SCALE, MAX_SCALE = 1e-3, 1e2


def bounded_scale(raw: Tensor, min_scale: float = MIN_SCALE, max_scale: float = MAX_SCALE) -> Tensor:
    """Standard deviations from unconstrained numbers, smoothly between a floor and a ceiling.

    ``log scale = a + (b - a) sigmoid(k raw + c)`` with ``a, b`` the logs of the bounds and ``k, c`` such that at
    ``raw = 0`` the scale is 1 and ``d log scale / d raw = 1``: there it behaves like ``exp(raw)``, but it can neither
    overflow nor vanish.
    """
    low, high = math.log(min_scale), math.log(max_scale)
    share = -low / (high - low)  # where log scale = 0 lies between the bounds
    slope = 1.0 / ((high - low) * share * (1.0 - share))
    return torch.exp(low + (high - low) * torch.sigmoid(slope * raw + math.log(share / (1.0 - share))))


def lower_triangular(diagonal: Tensor, lower: Tensor | None) -> Tensor:
    """Lower triangular matrices ``(..., d, d)`` of their diagonals and, row by row, what lies below.

    Arguments:
        diagonal: With shape ``(..., d)``.
        lower: With shape ``(..., d (d - 1) / 2)``, or None for zeros.
    """
    matrix = torch.diag_embed(diagonal)
    if lower is None:
        return matrix
    dim = diagonal.shape[-1]
    row, column = torch.tril_indices(dim, dim, offset=-1, device=diagonal.device)
    matrix = matrix.clone()
    matrix[..., row, column] = lower
    return matrix


class NormalHead(nn.Module):
    """A diagonal normal whose mean, and scale unless that is shared, are linear in the features.

    Several inputs are concatenated, so that a head is the linear encoder of a conditional VAE too.

    Arguments:
        in_features: Number of features F (the sum over all inputs).
        out_features: Dimension d of the normal.
        scale: None for a scale that depends on the features (bounded to [min_scale, max_scale]); a positive number
            (or d of them) for one shared by all inputs, as in linear VAEs.
        learn_scale: Whether a shared scale is a parameter; else it is fixed.
        bias: Whether the mean has a bias.
        min_scale, max_scale: Bounds of the standard deviations, min_scale < 1 < max_scale.

    Example:
        >>> q = NormalHead(32, 8)(torch.zeros(5, 32))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([8]))
    """

    log_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        scale: float | Tensor | None = None,
        learn_scale: bool = False,
        bias: bool = True,
        min_scale: float = MIN_SCALE,
        max_scale: float = MAX_SCALE,
    ) -> None:
        super().__init__()
        if not 0 < min_scale < 1 < max_scale:
            raise ValueError(
                f"The bounds must satisfy 0 < min_scale < 1 < max_scale, but got {min_scale}, {max_scale}."
            )
        if learn_scale and scale is None:
            raise ValueError("learn_scale=True needs the shared scale to start from: pass scale=1.0?")
        self.loc = nn.Linear(in_features, out_features, bias=bias)
        self.raw_scale = nn.Linear(in_features, out_features) if scale is None else None
        self.min_scale, self.max_scale = min_scale, max_scale

        if scale is None:
            self.log_scale = None
            return
        shared = torch.as_tensor(scale, dtype=torch.get_default_dtype()).expand(out_features)
        if not (shared > 0).all():
            raise ValueError(f"A scale is a standard deviation and must be positive, but got {scale}.")
        if learn_scale:
            self.log_scale = nn.Parameter(shared.log())
        else:
            self.register_buffer("log_scale", shared.log())

    def forward(self, *inputs: Tensor) -> TorchDistribution:
        return Normal(*self.loc_scale(concatenate(inputs))).to_event(1)

    def loc_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, both ``(..., d)``, of features ``(..., F)``."""
        loc = self.loc(features)
        if self.log_scale is not None:
            return loc, self.log_scale.exp().expand_as(loc)
        assert self.raw_scale is not None
        return loc, bounded_scale(self.raw_scale(features), self.min_scale, self.max_scale)


class SigmoidNormalHead(nn.Module):
    """A diagonal normal that is hardly ever wider than N(0, I): mean linear in the features, scale sigmoid(linear).

    Weights start as Xavier's and biases at 0, so the scale starts near 1/2.

    Arguments:
        in_features: Number of features F.
        out_features: Dimension d of the normal.
        min_scale: Added to the sigmoid; scales lie between it and 1 + it.

    References:
        | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017), the authors' code
        | https://arxiv.org/abs/1702.08396

    Example:
        >>> SigmoidNormalHead(32, 8)(torch.zeros(5, 32)).base_dist.scale.unique()
        tensor([0.5010], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, in_features: int, out_features: int, *, min_scale: float = MIN_SCALE) -> None:
        super().__init__()
        if not 0 < min_scale < 1:
            raise ValueError(f"min_scale is a small standard deviation in (0, 1), but got {min_scale}; 1e-3?")
        self.loc, self.raw_scale = nn.Linear(in_features, out_features), nn.Linear(in_features, out_features)
        self.min_scale = min_scale
        glorot(self)

    def forward(self, features: Tensor) -> TorchDistribution:
        scale = torch.sigmoid(self.raw_scale(features)) + self.min_scale
        return Normal(self.loc(features), scale).to_event(1)


class LogVarianceHead(nn.Module):
    """A diagonal normal whose mean and log variance are linear in the features, the "sampler" of many published codes.

    The log variance is cut off at -30 and 20 only, so scales are hardly bounded (3e-7 to 2e4). Weights start as
    Glorot's and biases at 0, so the scale starts near 1.

    Arguments:
        in_features: Number of features F.
        out_features: Dimension d of the normal.
        event_dim: Right-most dimensions of one datum's features: 3 for a map ``(..., C, H, W)``, which is flattened.

    References:
        | How to train your VAE (Rivera, 2024), the authors' code
        | https://arxiv.org/abs/2309.13160

    Example:
        >>> LogVarianceHead(32, 8, event_dim=3)(torch.zeros(5, 2, 4, 4)).base_dist.scale.unique()
        tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, in_features: int, out_features: int, *, event_dim: int = 1) -> None:
        super().__init__()
        self.loc, self.log_variance = nn.Linear(in_features, out_features), nn.Linear(in_features, out_features)
        self.event_dim = event_dim
        glorot(self)

    def forward(self, features: Tensor) -> TorchDistribution:
        flat = features.flatten(-self.event_dim)
        scale = (0.5 * self.log_variance(flat).clamp(-30.0, 20.0)).exp()
        return Normal(self.loc(flat), scale).to_event(1)


class MultivariateNormalHead(nn.Module):
    """A full-covariance normal N(loc, L Lᵀ); mean and Cholesky factor L are linear in the features.

    The diagonal of L is ``softplus(raw + log(e - 1)) + floor``, 1 at raw = 0 up to the floor; the head starts near the
    standard normal.

    Arguments:
        in_features: Number of features F.
        out_features: Dimension d of the normal; the head has d (d + 3) / 2 outputs.
        min_scale: Floor of the diagonal of L.
    """

    def __init__(self, in_features: int, out_features: int, *, min_scale: float = MIN_SCALE) -> None:
        super().__init__()
        self.loc = nn.Linear(in_features, out_features)
        self.diagonal = nn.Linear(in_features, out_features)
        self.lower = nn.Linear(in_features, out_features * (out_features - 1) // 2) if out_features > 1 else None
        self.min_scale = min_scale
        if self.lower is not None:
            # off-diagonals start at a tenth of the usual size, so that L starts well conditioned
            nn.init.normal_(self.lower.weight, std=0.1 / math.sqrt(in_features))
            nn.init.zeros_(self.lower.bias)

    def forward(self, features: Tensor) -> TorchDistribution:
        loc = self.loc(features)  # (..., d)
        diagonal = softplus(self.diagonal(features) + math.log(math.e - 1)) + self.min_scale
        lower = None if self.lower is None else self.lower(features)
        return MultivariateNormal(loc, scale_tril=lower_triangular(diagonal, lower))


class WeightHead(nn.Linear):
    """One number per datum, linear in the features and 0 at the start whatever they are: the logit of a mixture weight.

    Arguments:
        in_features: Number of features F.

    Example:
        >>> WeightHead(32)(torch.randn(5, 32))
        tensor([0., 0., 0., 0., 0.], grad_fn=<SqueezeBackward1>)
    """

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).squeeze(-1)
