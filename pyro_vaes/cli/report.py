"""`report`: everything about a run on one self-contained page, and its draws as netCDF for ArviZ."""

import math
from pathlib import Path
from typing import cast

import torch
from xarray import DataTree

from pyro_vaes.cli import report_page as page
from pyro_vaes.cli.measure import Measured, measure
from pyro_vaes.cli.pictures import criticism_pictures, held_out, latent_pictures, save, training_pictures
from pyro_vaes.cli.run_directory import Run
from pyro_vaes.diagnostics import summary, to_datatree

__all__ = ["POSTERIOR", "REPORT", "write_report"]

REPORT, POSTERIOR = "report.html", "posterior.nc"
ROWS = 60
VALUES = 4_000_000
"""Replicated pixels in the netCDF file, at most: about 16 MB before compression in each predictive group."""

CAPTIONS = {
    "reconstructions": "Held-out images above what the pair makes of them: means given one draw of the latents.",
    "samples": "Means of the pixels given latents drawn from the prior.",
    "manifold": "The two strongest units, all others at 0: neighbouring images should change smoothly.",
    "traversals": "One unit moves in each row, all others at 0.",
    "kl": "A unit whose bar is near zero says nothing about the image.",
    "collapse": "Share of units whose KL stays below epsilon for 95 % of the images.",
    "ppc": "Statistics of replicated data against the data; a p-value near 0 or 1 stands for a misfit.",
    "khat": "Above 0.7 the guide is too far from the posterior for the estimate of log p(x) to be trusted.",
    "loss": "Negative bound on training and held-out images.",
}


def write_report(run: Run, *, split: str | None = None, num_particles: int = 100, num_data: int = 1000) -> list[Path]:
    """Write `report.html`, `posterior.nc`, `evaluation.json` and the pictures into the run directory.

    Arguments:
        run: The run.
        split: The part of the data to report on.
        num_particles: K of the importance-weighted estimate.
        num_data: Rows to measure on.

    Returns:
        The files written.
    """
    name, part = held_out(run.data, split)
    measured = measure(run, num_particles=num_particles, num_data=num_data, split=name)
    rows = part.take(ROWS, seed=0)
    draws = min(200, max(50, VALUES // (len(rows) * math.prod(run.data.image_shape))))
    tree = to_datatree(run.model, run.guide, rows, draws, dims={"x": ["pixel"]})
    posterior = _write_netcdf(run, tree, name)
    pictures = save(training_pictures(run), run.directory)
    pictures |= save(latent_pictures(run, tree, measured.collapse, part.take(num_data, seed=0)), run.directory)
    pictures |= save(criticism_pictures(tree, measured.likelihood), run.directory)
    path = run.directory / REPORT
    path.write_text(_page(run, measured, tree, pictures), encoding="utf-8")
    return [path, posterior, *pictures.values()]


def _write_netcdf(run: Run, tree: DataTree, split: str) -> Path:
    path = run.directory / POSTERIOR
    tree.attrs.update(data_set=run.data.name, split=split, command=str(run.facts["command"]))
    encoding = {
        f"/{group}": {str(v): {"zlib": True, "complevel": 4} for v in node.data_vars}
        for group, node in tree.children.items()
    }
    tree.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return path


def _page(run: Run, measured: Measured, tree: DataTree, pictures: dict[str, Path]) -> str:
    options, numbers, history = run.options, measured.numbers, run.history

    def figures(*names: str, wide: bool = False) -> str:
        found = [n for name in names for n in pictures if n == name or n.startswith(f"{name}_z_")]
        each = "\n".join(page.figure(pictures[n], _caption(n), wide=wide) for n in found)
        return f'<div class="figures">\n{each}\n</div>' if each else ""

    active = sum(site.active_units for site in measured.collapse.sites.values())
    units = sum(site.mean_variance.numel() for site in measured.collapse.sites.values())
    khat = numbers["khat_above_0.7"]
    bits = numbers["bits_per_dimension"]
    big = [
        (f"{numbers['elbo']:.2f}", f"ELBO on {measured.split}, nats per image (± {numbers['elbo_error']:.2f})"),
        (
            f"{numbers['log_likelihood']:.2f}",
            f"log p(x), {numbers['num_particles']} importance samples (± {numbers['log_likelihood_error']:.2f})",
        ),
        *([(f"{bits:.3f}", "bits per dimension")] if bits is not None else []),
        (f"{active} of {units}", "latent units active (variance of posterior means above 0.01)"),
        *(
            [(f"{float(str(khat)):.0%}", "of images with k-hat above 0.7 (weights not reliable)")]
            if khat is not None
            else []
        ),
        (f"{sum(history.seconds):.0f} s", f"training, {len(history)} epochs"),
    ]
    pieces = (
        f"{options.network} networks, {options.likelihood} likelihood, guide {options.guide}, bound {options.bound}"
    )
    return page.page(
        f"{options.model} on {run.data.name}",
        f"{pieces}; started {run.facts['started']}",
        [
            page.cards(big),
            page.section(
                "What it has learnt",
                "Reconstructions test the guide and the decoder together, samples test the prior and the decoder.",
                figures("reconstructions", "samples"),
            ),
            page.section(
                "The latent space",
                "Where the images lie in it, what its units do to the picture, and how far the posterior over all "
                "images is from the prior that samples are drawn from.",
                figures("latents", "manifold", "traversals", "posterior"),
            ),
            page.section(
                "Posterior collapse",
                "A unit has collapsed if its posterior is its prior whatever the image.",
                figures("kl", "collapse"),
                page.details("The collapse report in numbers", page.preformatted(str(measured.collapse))),
            ),
            page.section(
                "Criticism",
                f"Replicates of {ROWS} images against these images, and how well importance weights correct the guide.",
                figures("ppc", wide=True),
                figures("khat"),
            ),
            page.section(
                "Prior against posterior, by ArviZ",
                f"Draws of {tree['posterior'].sizes['data']} images pooled. In a unit in use the posterior of one "
                "image is much narrower than the prior, while the pooled one is not. The draws are in "
                f"{POSTERIOR}: xarray.open_datatree(path), then any plot of ArviZ.",
                _arviz_table(tree),
            ),
            page.section(
                "Training",
                "Nats per image; the held-out curve turning upwards stands for overfitting.",
                figures("loss"),
                page.details("Every epoch", _history_table(run)),
            ),
            page.section(
                "Where it comes from",
                "What it takes to repeat this run.",
                page.preformatted(str(run.facts["command"])),
                page.details("Data, versions, options", page.facts(_provenance(run))),
            ),
        ],
    )


def _caption(name: str) -> str:
    if name.startswith("latents"):
        return "Posterior means of the images; a good latent space keeps what differs apart."
    if name.startswith("posterior"):
        return "Draws of all images pooled (filled) against the prior (line), strongest unit first."
    return CAPTIONS[name]


def _arviz_table(tree: DataTree) -> str:
    """ArviZ's summaries of both groups side by side, with the mean spread of the posterior of one image."""
    prior, posterior = summary(tree, group="prior"), summary(tree, group="posterior")
    within = []
    for site in tree["posterior"].data_vars:
        draws = torch.from_numpy(tree["posterior"][str(site)].to_numpy()[0])
        within += draws.std(0).mean(0).reshape(-1).tolist()
    columns = ["unit", *(f"prior {c}" for c in prior.columns), *(f"posterior {c}" for c in posterior.columns)]
    rows = [
        [
            str(unit),
            *(f"{v:.2f}" for v in before.astype(float)),
            *(f"{v:.2f}" for v in after.astype(float)),
            f"{spread:.2f}",
        ]
        for (unit, before), (_, after), spread in zip(prior.iterrows(), posterior.iterrows(), within, strict=True)
    ]
    return page.table([*columns, "posterior sd of one image"], rows)


def _history_table(run: Run) -> str:
    history = run.history
    valid = history.valid or [math.nan] * len(history)
    rows = zip(history.epochs, history.train, valid, history.grad_norm, history.seconds, strict=True)
    return page.table(
        ["epoch", "training loss", "held-out loss", "gradient norm", "seconds"],
        ([str(e), f"{t:.3f}", f"{v:.3f}", f"{g:.3g}", f"{s:.2f}"] for e, t, v, g, s in rows),
    )


def _provenance(run: Run) -> list[tuple[str, str]]:
    data = cast(dict[str, object], run.facts["data"])
    versions = cast(dict[str, str], run.facts["versions"])
    rows = cast(dict[str, int], data["rows"])
    return [
        ("data set", str(data["name"])),
        ("source", str(data["source"])),
        ("licence", str(data["licence"])),
        *([("remark", str(data["remark"]))] if data["remark"] else []),
        ("split", f"{', '.join(f'{n:,} {name}' for name, n in rows.items())}; {data['split']}"),
        ("space of the numbers", str(data["space"])),
        *(
            (f"SHA-256 of the {name} rows", digest)
            for name, digest in cast(dict[str, str], data["rows_sha256"]).items()
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("machine", str(run.facts["machine"])),
        ("options", ", ".join(f"{name}={value}" for name, value in run.options.to_json().items())),
    ]
