"""`python -m papers NAME --budget smoke|cpu|gpu`: repeat a paper's experiment, and print its table.

Without a name, or with the name ``list``, it shows the names.
"""

import logging
import shlex
from pathlib import Path
from typing import Annotated

import matplotlib
import typer

from papers import STUDIES
from pyro_vaes.cli import choose, user_errors, versions, whole_numbers

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """What `python -m papers` runs."""
    app(prog_name="python -m papers")


@app.command()
def repeat(
    name: Annotated[str, typer.Argument(help="Name of the experiment; `list` shows all names.")] = "list",
    budget: Annotated[str, typer.Option(help="smoke (seconds), cpu (minutes to two hours), gpu.")] = "smoke",
    data: Annotated[
        str | None,
        typer.Option(help="A data set.", show_default="the experiment's own; digits for smoke"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="One run of every case for each.")] = "1,2,3",
    only: Annotated[
        str | None,
        typer.Option(help="Names of cases, divided by ;", show_default="all"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file.", show_default="under runs/papers")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data files, if not the one found.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to compute, such as cuda.", show_default="cpu"),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Repeat a paper's experiment.

    The published figures stand beside ours, as a table and as JSON, with pictures if
    the experiment has any. An interrupted run goes on where it stopped when it is
    started again.
    """
    matplotlib.use("Agg")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if name == "list":
        typer.echo(listing())
        return

    with user_errors():
        study = choose("experiment", name, STUDIES)
        parts = [name, data, budget] if data else [name, budget]
        options = {"budget": budget, "data": data, "seeds": seeds, "only": only, "device": device}
        typed = command(name, **options)
        path = out or Path("runs") / "papers" / f"{'-'.join(parts)}.json"

        findings = study.run(
            budget,
            data=data,
            seeds=whole_numbers(seeds, "seeds"),
            only=[case.strip() for case in only.split(";")] if only else (),
            root=root,
            device=device or "cpu",
            out=path,
            about={"command": typed, **versions()},
            progress=progress,
        )
        typer.echo(findings)
        typer.echo(f"Written to {path}.")


def command(name: str, **options: str | None) -> str:
    """The line that repeats a run; options that are None are left out.

    Example:
        >>> command("lossy_coins", budget="cpu", only="window 0", device=None)
        "python -m papers lossy_coins --budget cpu --only 'window 0'"
    """
    given = {option: value for option, value in options.items() if value is not None}
    words = [f"--{option} {shlex.quote(value)}" for option, value in given.items()]
    return " ".join(["python -m papers", name, *words])


def listing() -> str:
    """One line for each experiment."""
    lines = [f"  {name:<32}{study.about}" for name, study in STUDIES.items()]
    return "\n".join(["Type python -m papers NAME --budget smoke|cpu|gpu. The names are", *lines])


if __name__ == "__main__":
    main()
