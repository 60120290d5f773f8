"""The pictures of a run, drawn from its model, guide and data."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor
from xarray import DataTree

from pyro_vaes import plots
from pyro_vaes.data import ImageData, Split
from pyro_vaes.diagnostics import CollapseReport, LogLikelihood, posterior_means, reconstruct
from pyro_vaes.programs import Pair

from .run_directory import Run

Pictures = Iterable[tuple[str, Axes]]
"""Names and axes, drawn one after the other."""

MOST_CLASSES = 20
"""More classes than this cannot be told apart by their colours."""


def held_out(data: ImageData, split: str | None = None) -> tuple[str, Split]:
    """A part of the data by name, or the first there is of test, validation and training part.

    Raises:
        ValueError: If there is no such part.
    """
    if split is None:
        split = next(name for name in ("test", "valid", "train") if name in data.parts)
    if split not in data.parts:
        raise ValueError(f"{data.name} has no {split!r} part: choose --split from {', '.join(data.parts)}.")
    return split, data.parts[split]


def save(pictures: Pictures, directory: Path) -> dict[str, Path]:
    """Write each picture to `directory/NAME.png` and close its figure."""
    paths = {}
    for name, ax in pictures:
        figure = ax.figure
        assert isinstance(figure, Figure)
        paths[name] = directory / f"{name}.png"
        figure.savefig(paths[name], dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)
    return paths


def sample_images(
    run: Run,
    num: int,
    *,
    labels: Tensor | None = None,
    z: Tensor | None = None,
    noise: bool = False,
    seed: int = 0,
) -> Tensor:
    """Images from the model run forward, with shape `(N, C, H, W)` in [0, 1].

    Arguments:
        run: The run.
        num: How many; has no effect with labels.
        labels: For the conditional model, one label per image, with shape `(N,)`.
        z: Values of the latent site "z", which is then not drawn.
        noise: Whether to draw the pixels too, rather than to show their means given the latents.
        seed: Seed of the draws.
    """
    pair = Pair(run.model, run.guide)
    device = pair.device()
    values = {} if z is None else {"z": z.to(device)}
    program = poutine.trace(poutine.condition(run.model, data=values))

    with pair.evaluating():
        torch.manual_seed(seed)
        trace = program.get_trace(size=num) if labels is None else program.get_trace(None, labels.to(device))
        site = trace.nodes["x"]
        images = site["value"] if noise else site["fn"].mean
    return run.data.to_images(images.cpu())


def training_pictures(run: Run) -> Pictures:
    """What every training leaves: losses, reconstructions, samples."""
    yield "loss", plots.loss_curves(run.history)

    name, part = held_out(run.data)
    shown = part.take(20, seed=0)
    means = reconstruct(run.model, run.guide, shown)["x"]
    title = f"Each reconstruction should resemble the {name} image above it"
    pair = map(run.data.to_images, (shown.x, means))

    yield "reconstructions", plots.reconstructions(*pair, value_range=(0, 1), title=title)

    labels, title = None, "Samples from the model: they should pass for data"
    columns = run.num_classes or None
    if columns:
        labels = torch.arange(columns).repeat(6)
        title = "Samples from the model, one column per class"

    images = sample_images(run, 64, labels=labels)
    yield (
        "samples",
        plots.samples(images, columns=columns, value_range=(0, 1), title=title),
    )


def latent_pictures(run: Run, tree: DataTree, collapse: CollapseReport, part: Split) -> Pictures:
    """What the latents do: KL of each unit, posterior against prior, scatter by label, walks and planes.

    Arguments:
        run: The run.
        tree: From `to_datatree`.
        collapse: From `collapse_report`.
        part: The data whose posterior means are shown.
    """
    sites = list(collapse.sites)
    several = len(sites) > 1

    units_of_all, kls, shares = [], [], []
    for site, found in collapse.sites.items():
        units_of_all += [f"{site}[{unit}]" for unit in range(len(found.kl))]
        kls.append(found.kl)
        epsilon, share = found.collapse_curve()
        shares.append(share)

    yield "kl", plots.kl_bars(torch.cat(kls), names=units_of_all if several else None)

    _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    labels = sites if several else None
    curves = torch.stack(shares)
    yield "collapse", plots.collapse_curve(epsilon, curves, labels=labels, ax=ax)

    # by class where there are few
    classes, names = part.labels, None
    if classes is None or classes.dim() > 1 or int(classes.max()) >= MOST_CLASSES:
        classes = None
    elif run.data.class_names:
        names = [run.data.class_names[k] for k in classes.unique().tolist()]

    for site, found in collapse.sites.items():
        suffix = f"_{site}" if several else ""
        strongest = found.kl.argsort(descending=True).tolist()
        draws = [tree[group][site].to_numpy() for group in ("posterior", "prior")]
        shown = strongest[:8] if len(strongest) > 1 else None
        yield f"posterior{suffix}", plots.posterior_against_prior(*draws, units=shown)

        means = posterior_means(run.model, run.guide, part, sites=[site], num_particles=20)
        if means.shape[1] > 1:
            units = (strongest[0], strongest[1]) if len(strongest) > 1 else (0, 1)
            title = f"Posterior means of {site} in its two strongest units"
            ax = plots.latent_scatter(means, classes, units=units, names=names, title=title)
            yield f"latents{suffix}", ax

        if sites == ["z"] and len(strongest) == means.shape[1] > 1:
            yield from _walks(run, strongest)


def _walks(run: Run, strongest: list[int]) -> Pictures:
    """Walks along the strongest units, and the plane of the two strongest."""
    size = len(strongest)
    first, second = strongest[:2]
    of_class = " (class 0)" if run.num_classes else ""

    def decode(z: Tensor) -> Tensor:
        labels = torch.zeros(len(z), dtype=torch.long) if run.num_classes else None
        return sample_images(run, len(z), labels=labels, z=z)

    def on_plane(z: Tensor) -> Tensor:
        full = z.new_zeros(len(z), size)
        full[:, first], full[:, second] = z[:, 0], z[:, 1]
        return decode(full)

    title = f"Each row moves one latent unit, strongest first: a unit in use changes the picture{of_class}"
    yield (
        "traversals",
        plots.traversals(decode, torch.zeros(size), units=strongest[:8], value_range=(0, 1), title=title),
    )

    title = f"The plane of the two strongest latents, in equal steps of prior probability{of_class}"
    ax = plots.manifold(on_plane, steps=12, value_range=(0, 1), title=title)
    ax.set_xlabel(f"z[{first}]")
    ax.set_ylabel(f"z[{second}]")
    yield "manifold", ax


def criticism_pictures(tree: DataTree, likelihood: LogLikelihood) -> Pictures:
    """What says whether to believe it: posterior-predictive checks and Pareto k-hat."""
    observed = tree["observed_data"]["x"].to_numpy()
    replicated = tree["posterior_predictive"]["x"].to_numpy()[0]
    yield "ppc", plots.ppc_panels(observed, replicated)[0]

    khat = likelihood.khat[likelihood.khat.isfinite()]
    if len(khat):
        yield "khat", plots.khat(khat)
