"""`report`: everything about a run on one self-contained page, and its draws as netCDF for ArviZ."""

import base64
import itertools
import math
from pathlib import Path

import jinja2
import torch
from pandas import DataFrame
from xarray import DataTree

from pyro_vaes.diagnostics import summary, to_datatree

from .measure import Measured
from .pictures import (
    criticism_pictures,
    latent_pictures,
    save,
    training_pictures,
)
from .run_directory import Run

REPORT, POSTERIOR = "report.html", "posterior.nc"
ROWS = 60
VALUES = 4_000_000
"""Replicated pixels in the netCDF file, at most: about 16 MB before compression in each predictive group."""


def write_report(run: Run, measured: Measured) -> list[Path]:
    """Write `report.html`, `posterior.nc` and the pictures into the run directory.

    Arguments:
        run: The run.
        measured: Its numbers; the report is on the same part of the data.

    Returns:
        The files written.
    """
    split = measured.numbers["split"]
    rows = run.data.parts[split].take(ROWS, seed=0)
    draws = min(200, max(50, VALUES // (len(rows) * math.prod(run.data.image_shape))))
    tree = to_datatree(run.model, run.guide, rows, draws, dims={"x": ["pixel"]})

    posterior = run.directory / POSTERIOR
    tree.attrs.update(data_set=run.data.name, split=split, command=str(run.facts["command"]))
    encoding = {
        f"/{group}": {str(v): {"zlib": True, "complevel": 4} for v in node.data_vars}
        for group, node in tree.children.items()
    }
    tree.to_netcdf(posterior, engine="h5netcdf", encoding=encoding)

    drawn = itertools.chain(
        training_pictures(run),
        latent_pictures(run, tree, measured.collapse, measured.part),
        criticism_pictures(tree, measured.likelihood),
    )
    pictures = save(drawn, run.directory)

    path = run.directory / REPORT
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_vaes.cli", ""),
        autoescape=True,  # of every value
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    page = environment.get_template("report.html.jinja").render(
        run=run,
        measured=measured,
        pictures=pictures,
        data_uri=_data_uri,
        units=_unit_table(tree),
        num_rows=len(rows),
        posterior_file=POSTERIOR,
    )
    path.write_text(page, encoding="utf-8")
    return [path, posterior, *pictures.values()]


def _data_uri(path: Path) -> str:
    """A picture as an address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _unit_table(tree: DataTree) -> DataFrame:
    """ArviZ's summaries of both groups side by side, with the mean spread of the posterior of one image."""
    within = []
    for site in tree["posterior"].data_vars.values():
        draws = torch.from_numpy(site.to_numpy()[0])
        within += draws.std(0).mean(0).flatten().tolist()

    prior, posterior = (summary(tree, group=group).add_prefix(f"{group} ") for group in ("prior", "posterior"))
    table = prior.join(posterior).astype(float)
    table["posterior sd of one image"] = within
    return table
