"""The commands of `pyro-vaes`."""

import logging
import shlex
from pathlib import Path
from typing import Annotated

import matplotlib
import typer

from pyro_vaes import __version__, plots
from pyro_vaes.cli.classes import by_class, chosen_classes
from pyro_vaes.cli.demo import demo as run_demo
from pyro_vaes.cli.errors import user_errors
from pyro_vaes.cli.listing import listing
from pyro_vaes.cli.measure import EVALUATION, measure
from pyro_vaes.cli.options import Options, whole_numbers
from pyro_vaes.cli.pictures import sample_images, save
from pyro_vaes.cli.report import write_report
from pyro_vaes.cli.run_directory import open_run
from pyro_vaes.cli.training import resume as resume_run
from pyro_vaes.cli.training import train as train_run

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train, measure and look at variational auto-encoders written as Pyro programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT = Options()
RunDirectory = Annotated[Path, typer.Argument(help="The directory of a run, as `train` wrote it.", show_default=False)]
Samples = Annotated[int, typer.Option(help="Importance samples per image.")]
NumData = Annotated[int, typer.Option(help="Images, drawn at random, the same ones every time.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Root = Annotated[str | None, typer.Option(help="Folder of the data files, if not the one recorded or found.")]
Device = Annotated[str | None, typer.Option(help="Where to compute, such as cuda.", show_default="cpu")]
Part = Annotated[str | None, typer.Option(help="test, valid or train.", show_default="the first there is")]


def main() -> None:
    """What the script `pyro-vaes` and `python -m pyro_vaes.cli` run."""
    app(prog_name="pyro-vaes")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyro-vaes {__version__}")
        raise typer.Exit()


@app.callback()
def prepare(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log message.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What holds for every command: pictures go to files, and warnings to stderr."""
    matplotlib.use("Agg")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("pyro_vaes").setLevel(logging.DEBUG if debug else logging.WARNING)


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str, typer.Argument(help="A data set (see `list`), a .npz, .npy or .mat file, or a folder.")
    ] = DEFAULT.data,
    out: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/DATA-MODEL")] = None,
    model: Annotated[str, typer.Option(help="See `list`, as for all names.")] = DEFAULT.model,
    network: Annotated[str, typer.Option()] = DEFAULT.network,
    likelihood: Annotated[str | None, typer.Option(show_default="by the pixels")] = DEFAULT.likelihood,
    guide: Annotated[str, typer.Option()] = DEFAULT.guide,
    bound: Annotated[str, typer.Option()] = DEFAULT.bound,
    latent_dim: Annotated[
        str | None, typer.Option(help="Dimension; 16,8 for two levels, from the data upwards.", show_default="16")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Widths 500,500 (mlp) or channels 32,64 (conv).", show_default="by the network")
    ] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Skip connections in the hierarchy.")] = DEFAULT.skip,
    top_down: Annotated[bool, typer.Option("--top-down", help="A top-down guide in the hierarchy.")] = DEFAULT.top_down,
    particles: Annotated[int, typer.Option(help="Draws in the bound; 0 for its default.")] = DEFAULT.particles,
    free_bits: Annotated[float, typer.Option(help="Nats per site, for the bound of that name.")] = DEFAULT.free_bits,
    epochs: Annotated[int, typer.Option()] = DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option()] = DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = DEFAULT.lr,
    kl_warmup: Annotated[int, typer.Option(help="Epochs over which the KL weight rises to 1.")] = DEFAULT.kl_warmup,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without progress; 0 never.")
    ] = DEFAULT.patience,
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0 for any.")] = DEFAULT.clip,
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = DEFAULT.seed,
    split_seed: Annotated[int, typer.Option(help="Of the split of the rows.")] = DEFAULT.split_seed,
    binarize: Annotated[bool, typer.Option("--binarize", help="Dynamic binarisation.")] = DEFAULT.binarize,
    resize: Annotated[int | None, typer.Option(help="Height and width of the images.")] = DEFAULT.resize,
    grey: Annotated[bool, typer.Option("--grey", help="Make colour images grey.")] = DEFAULT.grey,
    key: Annotated[str | None, typer.Option(help="For files of arrays: the name of the images.")] = DEFAULT.key,
    label_key: Annotated[str | None, typer.Option(help="The name of the labels, likewise.")] = DEFAULT.label_key,
    image_shape: Annotated[str | None, typer.Option(help="Shape of one image, likewise: 1,28,28.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many training rows.")] = DEFAULT.limit,
    root: Root = DEFAULT.root,
    device: Device = DEFAULT.device,
    on_nan: Annotated[str, typer.Option(help="raise, skip or rollback.")] = DEFAULT.on_nan,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Train a model and write its run directory.

    An interrupted run goes on with `pyro-vaes train --resume --out DIRECTORY` and ends with the same numbers.
    """
    with user_errors():
        values = {n: v for n, v in context.params.items() if n in Options.__dataclass_fields__}
        values["latent_dim"] = whole_numbers(latent_dim, "latent-dim") if latent_dim else ()
        values["image_shape"] = whole_numbers(image_shape, "image-shape") if image_shape else None
        values["hidden"] = whole_numbers(hidden, "hidden") if hidden else ()
        given = {n for n in values if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"}
        directory = out or Path("runs") / f"{Path(data).stem}-{model}"
        if resume and overwrite:
            raise ValueError(
                "--resume and --overwrite exclude each other: the one continues a run, the other begins it again."
            )
        if resume:
            finished = resume_run(directory, {n: values[n] for n in given})
        else:
            finished = train_run(Options(**values), directory, overwrite=overwrite)
        typer.echo(repr(finished.history))
        typer.echo(f"Written to {directory}. Next: pyro-vaes report {directory}")


@app.command()
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
    with user_errors():
        opened = open_run(run, root=root, device=device)
        measured = measure(opened, num_particles=particles, num_data=num_data, split=split, seed=seed)
        typer.echo("\n".join(measured.lines()))
        typer.echo(str(measured.collapse))
        typer.echo(f"Written to {run / EVALUATION}.")


@app.command()
def sample(
    run: RunDirectory,
    num: Annotated[
        int, typer.Option(min=1, help="How many images, rounded up to whole rows for a conditional model.")
    ] = 64,
    label: Annotated[
        list[str] | None,
        typer.Option(help="For conditional_vae: a class, several with several --label.", show_default="all"),
    ] = None,
    noise: Annotated[bool, typer.Option("--noise", help="Draw the pixels too, rather than show their means.")] = False,
    out: Annotated[Path | None, typer.Option(help="The picture.", show_default="RUN/samples.png")] = None,
    seed: Seed = 0,
    root: Root = None,
    device: Device = None,
) -> None:
    """Draw new images from a run; those of a conditional model are in rows, or in columns, by class."""
    with user_errors():
        opened = open_run(run, root=root, device=device)
        classes = chosen_classes(opened, label or [])
        path = out or run / "samples.png"
        if path.suffix.lower() != ".png":
            raise ValueError(f"--out is {path}, but pictures are written as .png.")
        path.parent.mkdir(parents=True, exist_ok=True)
        labels, columns, title = None, None, "Samples from the model: they should pass for data"
        if classes:
            labels, columns, title = by_class(opened, classes, num)
        images = sample_images(opened, num, labels=labels, noise=noise, seed=seed)
        ax = plots.samples(images, columns=columns, value_range=(0, 1), title=title)
        save([(path.stem, ax.figure)], path.parent)  # type: ignore[list-item]
        typer.echo(f"Written to {path}.")


@app.command()
def report(
    run: RunDirectory,
    particles: Samples = 100,
    num_data: NumData = 1000,
    split: Part = None,
    root: Root = None,
    device: Device = None,
) -> None:
    """Write a self-contained report.html, and the draws for ArviZ as posterior.nc."""
    with user_errors():
        opened = open_run(run, root=root, device=device)
        written = write_report(opened, split=split, num_particles=particles, num_data=num_data)
        typer.echo("\n".join(f"Written to {path}" for path in written))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def reproduce(context: typer.Context) -> None:
    """Say how a paper's experiment is repeated: from a checkout, by `python -m papers`."""
    typed = shlex.join(context.args) or "NAME --budget smoke"
    typer.echo(
        "Error: the papers' experiments are not in the installed package. They are in the folder papers of the "
        f"source repository. In a checkout of it, type:\n\n    python -m papers {typed}",
        err=True,
    )
    raise typer.Exit(2)


@app.command("list")
def list_names(root: Root = None) -> None:
    """Show all names: data sets (and which are here), models, networks, likelihoods, guides, bounds."""
    with user_errors():
        typer.echo(listing(root))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The run directory.")] = Path("runs/demo")) -> None:
    """Train on real digits in under two minutes, then measure and report."""
    with user_errors():
        measured, written = run_demo(out)
        typer.echo("\n".join(f"  {path}" for path in written))
        typer.echo("\n".join(measured.lines()))
        typer.echo(f"Open {out / 'report.html'} in a browser.")
