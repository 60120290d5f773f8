"""The pictures of a run, drawn from its model, guide and data."""

from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor
from xarray import DataTree

from pyro_vaes import plots
from pyro_vaes.cli.run_directory import Run
from pyro_vaes.data import ImageData, Split
from pyro_vaes.diagnostics import CollapseReport, LogLikelihood, reconstruct
from pyro_vaes.programs.pair import Pair

__all__ = ["criticism_pictures", "held_out", "latent_pictures", "save", "sample_images", "training_pictures"]

Pictures = Iterable[tuple[str, Figure]]
"""Names and figures, drawn one after the other."""

WIDTH, HEIGHT = 6.4, 3.6


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
    written = {}
    for name, figure in pictures:
        written[name] = directory / f"{name}.png"
        figure.savefig(written[name], dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)
    return written


def sample_images(run: Run, num: int, *, labels: Tensor | None = None, noise: bool = False, seed: int = 0) -> Tensor:
    """Images from the model run forward, with shape `(N, C, H, W)` in [0, 1].

    Arguments:
        run: The run.
        num: How many; without labels.
        labels: For the conditional model, one label per image, with shape `(N,)`.
        noise: Whether to draw the pixels too, rather than to show their means given the latents.
        seed: Seed of the draws.
    """
    if labels is None and run.options.model == "conditional_vae":
        labels = torch.arange(num) % (run.data.num_classes or 1)
    return run.data.to_images(_forward(run, poutine.trace(run.model), num, labels, noise=noise, seed=seed))


def _forward(
    run: Run, program: Callable[..., object], num: int, labels: Tensor | None, *, noise: bool = False, seed: int = 0
) -> Tensor:
    """The observation of a traced program run forward: means given the latents, or draws."""
    pair = Pair(run.model, run.guide)
    with pair.evaluating():
        torch.manual_seed(seed)
        if labels is None:
            trace = program.get_trace(size=num)  # type: ignore[attr-defined]
        else:
            trace = program.get_trace(None, labels.to(pair.device()))  # type: ignore[attr-defined]
        site = trace.nodes["x"]
        return (site["value"] if noise else site["fn"].mean).cpu()


def _decoder(run: Run, label: int = 0) -> Callable[[Tensor], Tensor]:
    """Latents of a model with one latent site to images; with labels, of one class."""

    def decode(z: Tensor) -> Tensor:
        device = next(run.vae.parameters()).device
        labels = torch.full((len(z),), label) if run.options.model == "conditional_vae" else None
        program = poutine.trace(poutine.condition(run.model, data={"z": z.to(device)}))
        return run.data.to_images(_forward(run, program, len(z), labels))

    return decode


def training_pictures(run: Run) -> Pictures:
    """What every training leaves: losses, reconstructions, samples."""
    yield "loss", _figure(plots.loss_curves(run.history))
    name, part = held_out(run.data)
    shown = part.take(20, seed=0)
    images = shown[:]
    x = images[0] if isinstance(images, tuple) else images
    means = reconstruct(run.model, run.guide, shown)["x"]
    title = f"Each reconstruction should resemble the {name} image above it"
    ax = plots.reconstructions(run.data.to_images(x), run.data.to_images(means), value_range=(0, 1), title=title)
    yield "reconstructions", _figure(ax)
    columns = run.data.num_classes if run.options.model == "conditional_vae" else None
    num = 6 * columns if columns else 64
    title = (
        "Samples from the model, one column per class"
        if columns
        else "Samples from the model: they should pass for data"
    )
    ax = plots.samples(sample_images(run, num), columns=columns, value_range=(0, 1), title=title)
    yield "samples", _figure(ax)


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
    kl = torch.cat([collapse[site].kl for site in sites])
    names = [f"{s}[{i}]" if several else str(i) for s in sites for i in range(len(collapse[s].kl))]
    yield "kl", _figure(plots.kl_bars(kl, names=names))
    figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    curves = [collapse[site].collapse_curve() for site in sites]
    shares = torch.stack([share for _, share in curves])
    plots.collapse_curve(curves[0][0], shares, labels=sites if several else None, ax=ax)
    yield "collapse", figure
    means = _posterior_means(run, part, sites)
    for site in sites:
        suffix = f"_{site}" if several else ""
        strongest = collapse[site].kl.argsort(descending=True).tolist() if collapse[site].kl.numel() > 1 else []
        draws = [tree[group][site].to_numpy() for group in ("posterior", "prior")]
        units = strongest[:8] or None
        yield f"posterior{suffix}", _figure(plots.posterior_against_prior(*draws, units=units))
        if means[site].shape[-1] > 1:
            labels = part.labels if part.labels is not None and part.labels.dim() == 1 else None
            crowd = labels is not None and int(labels.max()) < 20
            first, second = (strongest or [0, 1])[:2]
            classes = [] if labels is None else labels.unique().tolist()
            called = [run.data.class_names[int(k)] for k in classes] if crowd and run.data.class_names else None
            ax = plots.latent_scatter(means[site], labels if crowd else None, units=(first, second), names=called)
            ax.set_title(f"Posterior means of {site} in its two strongest units", loc="left", fontsize=10)
            yield f"latents{suffix}", _figure(ax)
    if sites == ["z"] and collapse["z"].kl.numel() == means["z"].shape[-1] > 1:
        yield from _walks(run, collapse["z"].kl.argsort(descending=True).tolist())


def _walks(run: Run, strongest: list[int]) -> Pictures:
    """Walks along the strongest units, and the plane of the two strongest."""
    decode, size = _decoder(run), len(strongest)
    of_class = " (class 0)" if run.options.model == "conditional_vae" else ""
    title = f"Each row moves one latent unit, strongest first: a unit in use changes the picture{of_class}"
    ax = plots.traversals(decode, torch.zeros(size), units=strongest[:8], value_range=(0, 1), title=title)
    yield "traversals", _figure(ax)
    first, second = strongest[:2]

    def on_plane(z: Tensor) -> Tensor:
        full = z.new_zeros(len(z), size)
        full[:, first], full[:, second] = z[:, 0], z[:, 1]
        return decode(full)

    title = f"The plane of the two strongest latents, in equal steps of prior probability{of_class}"
    ax = plots.manifold(on_plane, steps=12, value_range=(0, 1), title=title)
    ax.set_xlabel(f"z[{first}]")
    ax.set_ylabel(f"z[{second}]")
    yield "manifold", _figure(ax)


def criticism_pictures(tree: DataTree, likelihood: LogLikelihood) -> Pictures:
    """What says whether to believe it: posterior-predictive checks and Pareto k-hat."""
    observed = tree["observed_data"]["x"].to_numpy()
    replicated = tree["posterior_predictive"]["x"].to_numpy()[0]
    panels = plots.ppc_panels(observed, replicated)
    yield "ppc", panels[0].figure
    khat = likelihood.khat[likelihood.khat.isfinite()]
    if len(khat):
        yield "khat", _figure(plots.khat(np.asarray(khat)))


def _posterior_means(run: Run, part: Split, sites: list[str], num_draws: int = 20) -> dict[str, Tensor]:
    """Means of latent sites over some draws from the guide for each row, with shape `(N, K)`."""
    pair = Pair(run.model, run.guide)
    with pair.evaluating():
        torch.manual_seed(0)
        args = pair.arguments(part.to(pair.device() or "cpu").batch(slice(None)))
        traces = [poutine.trace(run.guide).get_trace(*args) for _ in range(num_draws)]
        return {s: torch.stack([t.nodes[s]["value"] for t in traces]).mean(0).flatten(1).cpu() for s in sites}


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True) if hasattr(ax, "get_figure") else ax.figure
    assert isinstance(figure, Figure)
    return figure
