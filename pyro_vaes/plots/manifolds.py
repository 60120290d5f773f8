"""Manifolds: a plane of two latents decoded picture by picture, for one level of latents or for several."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from pyro_vaes.programs import preserve_rng

from .images import ImageShape, Mosaic, ValueRange, draw_mosaic
from .latent import Decode, decoded
from .style import Array, label, row_of_axes

LevelDecode = Callable[[Sequence[Tensor]], Array]
"""Latents z_1 .. z_L, `(N, d_l)` each, to N images in any layout of `image_grid`."""

DRAWS = 4096
"""Draws that find the mean of a prior to 1/64 of its standard deviation."""


class Plane(NamedTuple):
    """A grid over two latents, one of which grows to the right and the other upwards.

    Attributes:
        across: Values of the first latent, from left to right, with shape `(n,)`.
        up: Values of the second latent, from bottom to top, with shape `(n,)`.
    """

    across: Tensor
    up: Tensor

    def points(self) -> Tensor:
        """Both latents of every picture, row by row from the top, with shape `(n * n, 2)`.

        Example:
            >>> Plane(torch.tensor([1, 2]), torch.tensor([3, 4])).points().tolist()
            [[1, 4], [2, 4], [1, 3], [2, 3]]
        """
        rows, columns = torch.meshgrid(self.up.flip(0), self.across, indexing="ij")
        return torch.stack((columns, rows), dim=-1).flatten(0, 1)

    def name_axes(self, mosaic: Mosaic, form: str, xlabel: str, ylabel: str) -> None:
        """Write the first, the middle and the last value along both axes of a mosaic.

        Arguments:
            mosaic: The pictures of the points.
            form: How numbers are written, such as ".2f".
            xlabel: Name of the first latent.
            ylabel: Name of the second latent.
        """
        last = len(self.up) - 1
        shown = sorted({0, len(self.up) // 2, last})
        # rounded, which leaves no 1e-17 and with + 0 no -0
        both = torch.stack((self.across, self.up)).double().round(decimals=6) + 0.0
        right, high = both.tolist()

        columns, rows = mosaic.column_centres[shown], mosaic.row_centres[shown]
        mosaic.ax.set_xticks(columns, [f"{right[i]:{form}}" for i in shown])
        mosaic.ax.set_yticks(rows, [f"{high[last - i]:{form}}" for i in shown])
        label(mosaic.ax, None, xlabel, ylabel)


@torch.no_grad()
def manifold(
    decode: Decode,
    *,
    steps: int = 15,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    title: str | None = "The plane of two latents, in equal steps of prior probability",
    ax: Axes | None = None,
) -> Axes:
    r"""Decode a grid over a two-dimensional latent space with a standard normal prior.

    .. math:: z_{ij} = (\Phi^{-1}(u_i), \Phi^{-1}(u_j)), \quad u_i = (i + 1/2) / n, \quad i = 0, \dots, n - 1

    Arguments:
        decode: Latents with shape `(N, 2)` to N images.
        steps: n, pictures per side.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white; see `to_unit`.
        dtype: Of the latents; None takes the default.
        device: Of the latents; None takes the default.
        title: Above the picture.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture; the first latent grows to the right and the second upwards.

    Raises:
        ValueError: If `steps` is below 2 or `decode` returns another number of images.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), figure 4
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> ax = manifold(lambda z: torch.sigmoid(z @ torch.randn(2, 64)), steps=5)
        >>> ax.images[0].get_array().shape
        (40, 40)
    """
    _check_steps(steps)
    places = torch.arange(steps, dtype=dtype, device=device)
    values = torch.special.ndtri((places + 0.5) / steps)
    plane = Plane(values, values)

    images = decoded(decode(plane.points()), steps**2, image_shape)
    drawn = draw_mosaic(images, steps, value_range, title, ax, gap=0)
    plane.name_axes(drawn, ".2f", "z[0]", "z[1]")
    return drawn.ax


@torch.no_grad()
def level_manifolds(
    decode: LevelDecode,
    latent_dims: Sequence[int],
    *,
    steps: int = 15,
    span: float = 2.0,
    units: tuple[int, int] = (0, 1),
    rest: Sequence[Tensor] | None = None,
    priors: Sequence[Distribution | nn.Module] | None = None,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """For each level decode a grid over two of its latents, all others drawn anew from the prior in each picture.

    What changes smoothly over the grid of a level is what that level codes. Put modules into evaluation mode first:
    with batch normalisation in training mode each picture depends on the others.

    Arguments:
        decode: Latents of all levels, `(N, d_1) .. (N, d_L)`, to N images, such as
            `lambda z: ladder.likelihood(ladder.decode(z)).mean`.
        latent_dims: d_1 .. d_L, level 1 nearest the data, each at least 2.
        steps: Pictures per side, at least 2; the paper's 30.
        span: The grid runs from -span to span, in standard deviations of the level's prior from its mean.
        units: The two units of a level that the grid moves, to the right and upwards.
        rest: Latents of one datum, with shapes `(d_l,)`, at which all others are held instead, so that pictures of a
            level differ by that level alone.
        priors: The priors of z_1 .. z_L, one distribution for each level or a module that returns it, as in
            `ladder.priors`; N(0, I) with None. Where the units of a prior depend on each other, a level's other units
            are drawn without regard to the two on the grid.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white; see `to_unit`.
        generator: Of the draws; None takes torch's global one.
        dtype: Of the latents; None takes that of the priors, without any the default.
        device: Of the latents; None likewise.
        axes: One for each level; None makes a figure.

    Returns:
        The axes, from the bottom level to the top.

    Raises:
        ValueError: If `steps` is below 2, a level lacks the units, `rest`, `priors` or `axes` do not match the levels,
            a prior has no finite mean and variance, or `decode` returns another number of images.

    References:
        | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
        | https://arxiv.org/abs/1702.08396

    Example:
        >>> weights = torch.randn(2, 64), torch.randn(3, 64)
        >>> axes = level_manifolds(lambda z: torch.sigmoid(z[0] @ weights[0] + z[1] @ weights[1]), [2, 3], steps=4)
        >>> [ax.get_title(loc="left") for ax in axes]
        ['z_1, the bottom', 'z_2, the top']
    """
    _check_steps(steps)
    fewest = min(latent_dims, default=0)
    if units[0] == units[1] or not 0 <= min(units) <= max(units) < fewest:
        raise ValueError(
            f"units={units}, but the levels have {list(latent_dims)} units; name two "
            "different ones that every level has, or draw a level of one unit with "
            "traversals."
        )

    if rest is not None:
        found, wanted = [tuple(z.shape) for z in rest], [(dim,) for dim in latent_dims]
        if found != wanted:
            raise ValueError(
                f"rest holds tensors of shapes {found}, but the levels of one datum "
                f"have {wanted}. Pick a datum first: [z[0] for z in latents]."
            )

    num_levels = len(latent_dims)
    panels = row_of_axes(axes, num_levels, 3.6, 4.0)
    if len(panels) != num_levels:
        problem = f"axes holds {len(panels)} axes for {num_levels} levels"
        raise ValueError(f"{problem}; pass one for each.")

    titles = [f"z_{level}" for level in range(1, num_levels + 1)]
    if num_levels > 1:
        titles[0] += ", the bottom"
        titles[-1] += ", the top"

    known, places = _read_priors(priors, latent_dims, generator)
    if places:
        dtype, device = dtype or places[0].dtype, device or places[0].device
    values = torch.linspace(-span, span, steps, dtype=dtype, device=device)

    def draw_all() -> list[Tensor]:
        """The latents of all levels for each picture, `(steps², d_l)`."""
        if rest is not None:
            return [z.to(values).repeat(steps**2, 1) for z in rest]
        if known:
            return [_draw(prior, steps**2, generator).to(values) for prior in known]
        zeros = [values.new_zeros(steps**2, dim) for dim in latent_dims]
        return [z.normal_(generator=generator) for z in zeros]

    for level, ax in enumerate(panels):
        plane = Plane(values, values)
        if places:
            loc, scale = places[level].to(values)
            plane = Plane(*(loc[unit] + scale[unit] * values for unit in units))

        z = draw_all()
        z[level][:, list(units)] = plane.points()
        images = decoded(decode(z), steps**2, image_shape, "latents per level")

        drawn = draw_mosaic(images, steps, value_range, titles[level], ax, gap=0)
        form = ".3g" if places else ".2g"
        plane.name_axes(drawn, form, f"unit {units[0]}", f"unit {units[1]}")
    return list(panels)


def _check_steps(steps: int) -> None:
    if steps < 2:
        wanted = "at least 2 pictures per side"
        raise ValueError(f"steps={steps}, but a plane needs {wanted}.")


def _read_priors(
    priors: Sequence[Distribution | nn.Module] | None,
    latent_dims: Sequence[int],
    generator: torch.Generator | None,
) -> tuple[list[Distribution], list[Tensor]]:
    """The priors, if any, as distributions over vectors of the levels' dimensions, and where their units lie.

    That is the units' means and standard deviations, `(2, d)`; those of draws where a prior knows none.
    """
    if priors is None:
        return [], []
    if len(priors) != len(latent_dims):
        there_are = f"There are {len(priors)} priors for {len(latent_dims)} levels"
        raise ValueError(f"{there_are}; pass one for each.")

    found, places = [], []
    levels = zip(priors, latent_dims, strict=True)
    for level, (given, dim) in enumerate(levels, start=1):
        prior = given() if isinstance(given, nn.Module) else given
        if not isinstance(prior, Distribution):
            raise ValueError(
                f"The prior of z_{level} is a {type(prior).__name__}, but a "
                "distribution is wanted, or a module whose forward() returns one."
            )

        shape = prior.batch_shape + prior.event_shape
        if shape != (dim,):
            raise ValueError(
                f"The prior of z_{level} has draws of shape {tuple(shape)}; wanted "
                f"{(dim,)}, as in latent_dims. Are the priors in the order of the "
                "levels, level 1 nearest the data?"
            )

        if not prior.event_shape:
            prior = Independent(prior, 1)

        try:
            loc, scale = prior.mean, prior.stddev
        except NotImplementedError:
            draws = _draw(prior, DRAWS, generator)
            loc, scale = draws.mean(0), draws.std(0)

        place = torch.stack((loc, scale))
        if not place.isfinite().all():
            raise ValueError(
                f"The prior of z_{level} has no finite mean and variance by which to "
                f"place the grid: its means are {loc.tolist()} and its standard "
                f"deviations {scale.tolist()}."
            )

        found.append(prior)
        places.append(place)
    return found, places


def _draw(prior: Distribution, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` draws; with a generator they follow from it, and torch's global one stays where it is."""
    if generator is None:
        return prior.sample(torch.Size([count]))

    device = generator.device
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    with preserve_rng():
        torch.manual_seed(int(seed))
        return prior.sample(torch.Size([count]))
