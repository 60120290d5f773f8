"""Which files of a directory are a run's, and how a new run takes it over without losing anything that was there."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

RUN, CHECKPOINT, HISTORY = "run.json", "checkpoint", "history.json"
FILES = (
    RUN,
    CHECKPOINT,
    f".{CHECKPOINT}.old",
    f".{CHECKPOINT}.new",
    HISTORY,
    "evaluation.json",
    "report.html",
    "posterior.nc",
)
PICTURES = re.compile(
    r"(loss|reconstructions|samples|kl|collapse|traversals|manifold|ppc|khat|(posterior|latents)(_z_\d+)?)\.png"
)
"""What a run may write, and so what is replaced with it; nothing else in its directory is."""


def files_of_run(directory: Path) -> list[Path]:
    """What a run wrote in its directory, as far as it is there."""
    found = directory.iterdir() if directory.is_dir() else ()
    return [path for path in found if path.name in FILES or PICTURES.fullmatch(path.name)]


def _move_run(source: Path, target: Path) -> None:
    for path in files_of_run(source):
        path.rename(target / path.name)


@contextlib.contextmanager
def new_run(directory: Path, *, overwrite: bool) -> Iterator[None]:
    """A directory made ready for a new run; as it was before if an error comes before the first checkpoint.

    Arguments:
        directory: Created if need be, with its parents.
        overwrite: Whether a run that is there may be replaced; what a run did not write stays.

    Raises:
        ValueError: If it cannot be written to, or holds a run already.
    """
    replaced = (directory / RUN).exists()
    if replaced and not overwrite:
        raise ValueError(
            f"{directory} holds a run already: continue it with --resume, replace it with --overwrite, or "
            "choose another --out."
        )

    created = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    aside = directory / ".replaced"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        if replaced:
            _move_run(directory, aside)
    except OSError as error:
        raise ValueError(
            f"the run cannot be written to {directory} ({error}): choose an --out that you may write to."
        ) from error

    try:
        yield
    except Exception:
        if not (directory / CHECKPOINT).exists():
            (directory / RUN).unlink(missing_ok=True)
            _move_run(aside, directory)
            aside.rmdir()
            with contextlib.suppress(OSError):  # a folder in which something else is now stays
                for folder in created:
                    folder.rmdir()
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
