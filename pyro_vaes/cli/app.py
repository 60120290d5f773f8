"""The commands of `pyro-vaes`.

What a command needs is imported where it runs: `--help` starts at once.
"""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pyro_vaes import __version__

from .errors import user_errors
from .options import Device, Options, Root, as_values, with_options

app = typer.Typer(
    help="Train, measure and look at variational auto-encoders written as Pyro programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunDirectory = Annotated[Path, typer.Argument(help="The directory of a run, as `train` wrote it.", show_default=False)]
Samples = Annotated[int, Option(help="The number of importance samples per image.")]
NumData = Annotated[int, Option(help="The number of images, drawn at random, the same ones every time.")]
Seed = Annotated[int, Option(help="The random seed for the draws.")]
Part = Annotated[
    str | None, Option(help="The part of the data: test, valid or train.", show_default="the first that there is")
]


def main() -> None:
    """What the script `pyro-vaes` and `python -m pyro_vaes.cli` run."""
    app(prog_name="pyro-vaes")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyro-vaes {__version__}")
        raise typer.Exit()


@app.callback()
def prepare(
    debug: Annotated[bool, Option("--debug", help="Show tracebacks and every log message.")] = False,
    version: Annotated[bool, Option("--version", help="Show the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """What holds for every command: pictures go to files, and warnings to stderr."""
    os.environ["MPLBACKEND"] = "Agg"
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].use("Agg")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("pyro_vaes").setLevel(logging.DEBUG if debug else logging.WARNING)


@app.command()
@with_options
@user_errors()
def train(
    context: typer.Context,
    *,
    out: Annotated[Path | None, Option(help="The directory of the run.", show_default="runs/DATA-MODEL")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the run in --out.")] = False,
    **typed: object,
) -> None:
    """Train a model and write its run directory.

    An interrupted run goes on with `pyro-vaes train --resume --out DIRECTORY` and ends with the same numbers.
    """
    from .training import resume as resume_run
    from .training import train as train_run

    if resume and overwrite:
        raise ValueError(
            "--resume and --overwrite exclude each other: the one continues a run, the other begins it again."
        )

    values = as_values(typed)
    directory = out or Path("runs") / f"{Path(values['data']).stem}-{values['model']}"

    if resume:
        sources = {name: context.get_parameter_source(name) for name in values}
        given = {n: values[n] for n, source in sources.items() if source and source.name == "COMMANDLINE"}
        finished = resume_run(directory, given)
    else:
        finished = train_run(Options(**values), directory, overwrite=overwrite)

    typer.echo(repr(finished.history))
    typer.echo(f"Written to {directory}. Next: pyro-vaes report {directory}")


@app.command()
@user_errors()
def evaluate(
    run: RunDirectory,
    particles: Samples = 100,
    num_data: NumData = 1000,
    split: Part = None,
    seed: Seed = 0,
    root: Root = None,
    device: Device = None,
) -> None:
    """Measure a run: ELBO, importance-weighted log-likelihood, k-hat, active units."""
    from .measure import EVALUATION, measure
    from .run_directory import open_run

    opened = open_run(run, root=root, device=device)
    measured = measure(opened, num_particles=particles, num_data=num_data, split=split, seed=seed)
    typer.echo("\n".join(measured.lines()))
    typer.echo(str(measured.collapse))
    typer.echo(f"Written to {run / EVALUATION}.")


@app.command()
@user_errors()
def sample(
    run: RunDirectory,
    num: Annotated[
        int, Option(min=1, help="The number of images, rounded up to whole rows for a conditional model.")
    ] = 64,
    label: Annotated[
        list[str] | None,
        Option(help="A class of a conditional_vae; give the option several times for several.", show_default="all"),
    ] = None,
    noise: Annotated[bool, Option("--noise", help="Draw the pixels too, rather than show their means.")] = False,
    out: Annotated[Path | None, Option(help="The file of the picture.", show_default="RUN/samples.png")] = None,
    seed: Seed = 0,
    root: Root = None,
    device: Device = None,
) -> None:
    """Draw new images from a run; those of a conditional model are in rows, or in columns, by class."""
    from pyro_vaes import plots

    from .classes import by_class, chosen_classes
    from .pictures import sample_images, save
    from .run_directory import open_run

    opened = open_run(run, root=root, device=device)
    layout = by_class(opened, chosen_classes(opened, label or []), num)
    path = out or run / "samples.png"
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out is {path}, but pictures are written as .png.")

    path.parent.mkdir(parents=True, exist_ok=True)
    images = sample_images(opened, num, labels=layout.labels, noise=noise, seed=seed)
    ax = plots.samples(images, columns=layout.columns, value_range=(0, 1), title=layout.title)
    save([(path.stem, ax)], path.parent)
    typer.echo(f"Written to {path}.")


@app.command()
@user_errors()
def report(
    run: RunDirectory,
    particles: Samples = 100,
    num_data: NumData = 1000,
    split: Part = None,
    root: Root = None,
    device: Device = None,
) -> None:
    """Write a self-contained report.html, and the draws for ArviZ as posterior.nc."""
    from .measure import measure
    from .report import write_report
    from .run_directory import open_run

    opened = open_run(run, root=root, device=device)
    measured = measure(opened, num_particles=particles, num_data=num_data, split=split)
    written = write_report(opened, measured)
    typer.echo("\n".join(f"Written to {path}" for path in written))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def reproduce(context: typer.Context) -> None:
    """Say how a paper's experiment is repeated: from a checkout, by `python -m papers`."""
    typed = shlex.join(context.args) or "NAME --budget smoke"
    typer.echo(
        "Error: the papers' experiments are not in the installed package. They are in the "
        "folder papers of the source repository. In a checkout of it, type:\n\n"
        f"    python -m papers {typed}",
        err=True,
    )
    raise typer.Exit(2)


@app.command("list")
@user_errors()
def list_names(root: Root = None) -> None:
    """Show all names: data sets (and which are here), models, networks, likelihoods, guides, bounds."""
    from .listing import listing

    typer.echo(listing(root))


@app.command()
@user_errors()
def demo(out: Annotated[Path, Option(help="The directory of the run.")] = Path("runs/demo")) -> None:
    """Train on real digits in under two minutes, then measure and report."""
    from .demo import demo as run_demo

    measured, written = run_demo(out)
    typer.echo("\n".join(f"  {path}" for path in written))
    typer.echo("\n".join(measured.lines()))
    typer.echo(f"Open {out / 'report.html'} in a browser.")
